//! What an earlier server had assigned, and what its workers say of it.

use super::*;

#[test]
fn what_an_earlier_server_assigned_is_adopted() {
    // The worker pings, and builds on.
    let mut stage = Stage::with_worker();
    assert_eq!(stage.adopt(7), []);
    assert_eq!(stage.phase(7), Some(Phase::Started));
    assert_eq!(stage.adopt(7), [], "twice is once");
    assert_eq!(stage.say(A, &succeeded(DRV)), [reported(7, success())]);
    // It is heard of afterwards.
    let mut stage = Stage::new();
    stage.adopt(7);
    assert_eq!(stage.phase(7), Some(Phase::Adopted));
    stage.pass(60);
    stage.open(B);
    stage.say(B, &format!("(worker-ping {})", record("w")));
    assert_eq!(stage.phase(7), Some(Phase::Started));
    assert_eq!(lost(&stage.pass(110)), []);
    // It has reported already, before anybody knew whose build that was.
    let mut stage = Stage::new();
    stage.open(A);
    assert_eq!(stage.say(A, &succeeded(DRV)), []);
    assert_eq!(stage.adopt(7), [reported(7, success())]);
    assert_eq!(stage.hall.settle(of(7)), Ok(()));
    // It wants work and has reported nothing.
    let mut stage = Stage::with_worker();
    stage.say(A, r#"(worker-request-work "w")"#);
    assert_eq!(lost(&stage.adopt(7)), [(7, false)]);
    let mut stage = Stage::with_worker();
    stage.adopt(7);
    let told = stage.say(A, r#"(worker-request-work "w")"#);
    assert_eq!(lost(&told), [(7, false)]);
    assert_eq!(told[1..], [requested()]);
    // It is never heard of.
    let mut stage = Stage::new();
    stage.adopt(7);
    assert_eq!(lost(&stage.pass(89)), []);
    assert_eq!(lost(&stage.pass(1)), [(7, true)]);
}

#[test]
fn of_several_that_are_adopted_none_is_lost_before_its_worker_shows_which_it_builds() {
    for order in [[(7, DRV), (8, OTHER)], [(8, OTHER), (7, DRV)]] {
        let mut stage = Stage::with_worker();
        for (build, derivation) in order {
            let (worker, derivation) = ("w".to_owned(), derivation.to_owned());
            let adopt = Adopt { of: of(build), worker, derivation };
            let (now, mut out) = (stage.now(), Vec::new());
            stage.hall.adopt(now, adopt, &mut out).unwrap();
            assert_eq!(out, []);
        }
        assert_eq!(stage.say(A, &succeeded(OTHER)), [reported(8, success())]);
        let told = stage.say(A, r#"(worker-request-work "w")"#);
        assert_eq!(lost(&told), [(7, false)], "that end died with an earlier server");
        assert_eq!(told[1..], [requested()]);
    }
    // All of them are lost with their worker.
    let mut stage = Stage::new();
    stage.adopt(7);
    stage.adopt(8);
    stage.open(B);
    stage.say(B, &format!("(worker-ping {})", record("w")));
    stage.close(B);
    assert_eq!(lost(&stage.pass(10)), [(7, true), (8, true)]);
}

#[test]
fn what_is_said_of_unknown_builds_is_kept_for_a_while() {
    let mut stage = Stage::with_worker();
    stage.say(A, &succeeded(DRV));
    for _ in 0..3 {
        stage.pass(60);
        stage.say(B, &format!("(worker-ping {})", record("w")));
    }
    assert_eq!(stage.adopt(7), [], "forgotten: it may be building");
    for n in 0..5000 {
        let derivation = DRV.replace("hello-2.12", &format!("hello-{n}"));
        stage.say(A, &succeeded(&derivation));
    }
    // Another worker's word of the same derivation is none.
    let mut stage = Stage::with_worker();
    stage.open(Link(3));
    stage.say(Link(3), &format!("(worker-ready {})", record("v")));
    stage.say(Link(3), &failed(DRV));
    assert_eq!(stage.adopt(7), []);
}
