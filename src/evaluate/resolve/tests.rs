//! Needs in every order, cycles, unknown names, bounds.

use super::*;
use crate::evaluate::line::parse;

fn resolver() -> Resolver {
    Resolver::new(&JobsetName::new("js").unwrap(), 3, vec!["t1".to_owned()])
}

fn command(job: &str, needs: &[&str]) -> Line {
    let text = format!(r#"{{"job":"{job}","system":"s","command":["true"],"needs":{needs:?}}}"#);
    parse(text.as_bytes()).unwrap()
}

fn feed(resolver: &mut Resolver, line: Line) -> Vec<NewJob> {
    let mut out = Vec::new();
    resolver.feed(line, &mut out).unwrap();
    out
}

fn names(jobs: &[NewJob]) -> Vec<&str> {
    jobs.iter().map(|job| job.name.as_str()).collect()
}

fn all(lines: Vec<Line>) -> HashMap<String, NewJob> {
    let (mut resolver, mut out) = (resolver(), Vec::new());
    for line in lines {
        resolver.feed(line, &mut out).unwrap();
    }
    resolver.finish(&mut out);
    assert_eq!(resolver.held_bytes, 0);
    let mut seen = std::collections::HashSet::new();
    for job in &out {
        assert!(job.needs.iter().all(|need| seen.contains(need)), "{} before its needs", job.name);
        seen.insert(job.derivation.clone());
    }
    out.into_iter().map(|job| (job.name.clone(), job)).collect()
}

fn error(job: &NewJob) -> &str {
    let Work::Error(message) = &job.work else { panic!("{job:?}") };
    message
}

#[test]
fn jobs_come_out_at_once_or_when_their_needs_do() {
    let mut resolver = resolver();
    assert_eq!(names(&feed(&mut resolver, command("a", &[]))), ["a"]);
    assert_eq!(names(&feed(&mut resolver, command("d", &["c", "b"]))), [""; 0]);
    assert_eq!(names(&feed(&mut resolver, command("c", &["b", "a"]))), [""; 0]);
    assert_eq!(names(&feed(&mut resolver, command("e", &["b"]))), [""; 0]);
    assert_eq!(resolver.held(), 3);
    let out = feed(&mut resolver, command("b", &[]));
    assert_eq!(names(&out), ["b", "c", "d", "e"]);
    assert_eq!(out[2].needs, [out[1].derivation.clone(), out[0].derivation.clone()]);
    let Work::Process(work) = &out[2].work else { panic!() };
    assert_eq!(work.needs, ["c", "b"]);
    assert_eq!((out[0].priority, out[0].timeout, out[0].max_silent_time), (39, 72_000, 3600));
    assert_eq!((resolver.held(), resolver.held_bytes), (0, 0));
}

#[test]
fn identities_do_not_depend_on_the_order_of_lines() {
    let forward = all(vec![command("a", &[]), command("b", &["a"]), command("c", &["a", "b"])]);
    let backward = all(vec![command("c", &["b", "a"]), command("b", &["a"]), command("a", &[])]);
    for name in ["a", "b", "c"] {
        assert_eq!(forward[name].derivation, backward[name].derivation, "{name}");
    }
    assert_ne!(forward["a"].derivation, forward["b"].derivation);
}

#[test]
fn what_is_needed_decides_the_identity() {
    let with = |drv: &str| {
        let text = format!(r#"{{"job":"d","system":"s","derivation":"/s/{drv}.drv"}}"#);
        all(vec![parse(text.as_bytes()).unwrap(), command("p", &["d"])])
    };
    let (one, two) = (with("one"), with("two"));
    assert_ne!(one["p"].derivation, two["p"].derivation);
    assert_eq!(one["p"].needs, ["/s/one.drv"]);
}

#[test]
fn needs_are_of_the_same_system() {
    let other = parse(br#"{"job":"a","system":"other","command":["true"]}"#).unwrap();
    let jobs = all(vec![other, command("b", &["a"])]);
    assert_eq!(error(&jobs["b"]), "needs \"a\", which is no job of this evaluation and system");
}

#[test]
fn cycles_are_errors_and_what_needs_them_is_not() {
    let jobs = all(vec![
        command("outside", &["a"]),
        command("a", &["b"]),
        command("b", &["c"]),
        command("c", &["a", "fine"]),
        command("fine", &[]),
        command("self", &["self"]),
        command("far", &["outside", "fine"]),
    ]);
    for name in ["a", "b", "c"] {
        assert_eq!(error(&jobs[name]), "needs itself: a, b, c form a cycle");
        assert!(jobs[name].derivation.starts_with("error:"));
    }
    assert_eq!(error(&jobs["self"]), "needs itself");
    assert_eq!(jobs["outside"].needs, [jobs["a"].derivation.clone()]);
    assert_eq!(jobs["far"].needs.len(), 2);
    assert!(jobs["far"].derivation.starts_with("process:"));
}

#[test]
fn a_cycle_with_an_unknown_need_is_wrong_as_a_whole() {
    let jobs = all(vec![command("a", &["b", "ghost"]), command("b", &["a"])]);
    assert!(error(&jobs["a"]).contains("ghost"));
    assert!(error(&jobs["b"]).contains("cycle"));
}

#[test]
fn a_job_of_a_need_with_the_same_derivation_does_not_wait_for_itself() {
    let derivation = |job: &str, needs: &str| {
        let text =
            format!(r#"{{"job":"{job}","system":"s","derivation":"/s/x.drv","needs":[{needs}]}}"#);
        parse(text.as_bytes()).unwrap()
    };
    let jobs = all(vec![derivation("a", ""), derivation("b", "\"a\"")]);
    assert!(jobs["b"].needs.is_empty());
}

#[test]
fn repeated_jobs_are_refused_also_while_held() {
    let (mut resolver, mut out) = (resolver(), Vec::new());
    resolver.feed(command("a", &[]), &mut out).unwrap();
    resolver.feed(command("b", &["later"]), &mut out).unwrap();
    for name in ["a", "b"] {
        let error = resolver.feed(command(name, &[]), &mut out).unwrap_err();
        assert_eq!(error, Error::Repeated { job: name.to_owned(), system: "s".to_owned() });
    }
}

#[test]
fn what_is_held_is_bounded() {
    let (mut resolver, mut out) = (resolver(), Vec::new());
    let argument = "x".repeat(1 << 20);
    let error = (0..1000).find_map(|n| {
        let mut line = command(&format!("j{n}"), &["ghost"]);
        line.what = What::Process {
            command: vec![argument.clone()],
            environment: Default::default(),
            products: Vec::new(),
        };
        resolver.feed(line, &mut out).err()
    });
    assert_eq!(error, Some(Error::TooMuchHeld));
    assert!(resolver.held() < 129);
}

#[test]
fn a_hundred_thousand_held_jobs_come_out_in_order() {
    let (mut resolver, mut out) = (resolver(), Vec::new());
    let count = 100_000;
    for n in 0..count {
        let need = format!("j{}", n + 1);
        resolver.feed(command(&format!("j{n}"), &[&need]), &mut out).unwrap();
    }
    assert!(out.is_empty() && resolver.held_bytes < MAX_HELD / 2, "{}", resolver.held_bytes);
    resolver.feed(command(&format!("j{count}"), &[]), &mut out).unwrap();
    assert_eq!(out.len(), count + 1);
    assert_eq!((out[0].name.as_str(), out[count].name.as_str()), ("j100000", "j0"));
}
