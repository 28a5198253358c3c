//! What people do: follow, log in, trigger, restart, cancel, edit, search; and see what comes of it as it happens.

use serde_json::json;

use super::{Site, held, log_in, usual};
use crate::support::browser::{Browser, ENTER};
use crate::support::jobs::job;
use crate::support::until;
use crate::web::change::kept;

/// Marks the page, so that one that was loaded again is found out.
const MARK: &str = "window.same = true";

#[test]
fn a_log_is_followed_until_its_build_ends() {
    let mut site = Site::new(|repository| {
        let command = format!(
            "printf '\\033[32mbegun\\033[0m <b>\\n'; {}; echo more; {}; echo last",
            held(repository, "more"),
            held(repository, "end")
        );
        job("slow", &command, "")
    });
    site.becomes("slow", "started");
    let Some(browser) = Browser::start(site.web) else { return site.release("end") };
    let id = site.build("slow");
    browser.open(&format!("/build/{id}/log"));
    browser.run(MARK);
    browser.wait("return document.querySelector('#L1 .ansi-fg-2')?.textContent === 'begun'");
    assert!(browser.text("pre.log").contains("<b>"), "{}", browser.text("pre.log"));
    assert!(browser.text("main").contains("It is still growing."));
    site.release("more");
    browser.wait("return document.querySelector('#L2')?.textContent.endsWith('more')");
    assert!(browser.text("[data-live=status]").contains("Running"));
    site.release("end");
    browser.wait("return document.querySelector('#L3')?.textContent.endsWith('last')");
    browser.wait(
        "return document.querySelector('[data-live=status]').textContent === 'Succeeded' \
         && !document.querySelector('main').textContent.includes('still growing') && window.same",
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_log_is_followed_while_somebody_looks() {
    let mut site = Site::new(|repository| {
        let wait = |name| held(repository, name);
        let (more, end) = (wait("more"), wait("end"));
        job("slow", &format!("printf 'one\\nhalf a '; {more}; echo line; {end}; echo last"), "")
    });
    site.becomes("slow", "started");
    let Some(browser) = Browser::start(site.web) else { return site.release("end") };
    let target = format!("/build/{}/log", site.build("slow"));
    until("half a line", || site.web.get(&target).text().contains("half a ").then_some(()));
    browser.open(&target);
    browser.run(MARK);
    let looks = |hidden: bool| {
        let hidden = format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});"
        );
        browser.run(&format!("{hidden} document.dispatchEvent(new Event('visibilitychange'))"));
    };
    let lines = "[...document.querySelectorAll('pre.log > span')].map((line) => line.textContent)";
    let shown = |lines_then: &[&str]| {
        let wanted = json!(lines_then).to_string();
        browser.wait(&format!("return JSON.stringify({lines}) === {}", json!(wanted)));
    };
    shown(&["1 one", "2 half a "]);
    // In a tab that nobody sees nothing is followed.
    looks(true);
    site.release("more");
    until("the line", || site.web.get(&target).text().contains("half a line").then_some(()));
    assert_eq!(browser.run(&format!("return {lines}")), json!(["1 one", "2 half a "]));
    looks(false);
    shown(&["1 one", "2 half a line"]);
    looks(true);
    site.release("end");
    site.becomes("slow", "succeeded");
    looks(false);
    shown(&["1 one", "2 half a line", "3 last"]);
    browser.wait(
        "return document.querySelector('[data-live=status]').textContent === 'Succeeded' && window.same",
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_jobset_is_triggered_and_its_evaluation_appears() {
    let mut site = Site::new(usual);
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    log_in(&browser, &site.token);
    site.repository.set_jobs(&job("other", "true", ""));
    // So that the page is there before the evaluation is.
    site.daemon.ask("pause evaluations");
    browser.open("/jobset/hello");
    browser.choose("Look at the channels now");
    assert_eq!(browser.target(), "/jobset/hello");
    browser.run(MARK);
    site.daemon.ask("resume evaluations");
    browser.wait(
        "const rows = document.querySelectorAll('[data-live=evaluations] tbody tr');
         return rows.length === 2 && rows[0].textContent.includes('Succeeded') && window.same",
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn builds_are_restarted_and_canceled() {
    let mut site = Site::new(|repository| {
        let place = repository.path().join(".git/mended");
        let command = format!("test -e {} && {}", place.display(), held(repository, "end"));
        job("bad", &command, "")
    });
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    log_in(&browser, &site.token);
    let page = format!("/build/{}/details", site.build("bad"));
    browser.open(&page);
    assert!(browser.text("[data-live=build]").contains("exit status 1"));
    site.release("mended");
    browser.choose("Restart");
    assert_eq!(browser.target(), page);
    browser.run(MARK);
    let is = |word: &str| {
        let condition = format!(
            "return document.querySelector('[data-live=build] .s').textContent === '{word}' && window.same"
        );
        browser.wait(&condition);
    };
    is("Running");
    browser.choose("Cancel");
    assert_eq!(browser.target(), page);
    browser.run(MARK);
    is("Canceled");
    assert!(browser.text("[data-live=build]").contains("by a person"));
    // What can be done now is what is offered.
    browser.wait("return document.querySelector('.actions').textContent.includes('Restart')");
    browser.choose("Restart");
    browser.run(MARK);
    is("Running");
    site.release("end");
    is("Succeeded");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_specification_is_edited_and_nothing_is_lost() {
    let mut site = Site::new(usual);
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    let id = "0123456789012345678901234567890123456789";
    let mut full = site.repository.specification("full", &["./jobs", "--flag", "a b"]);
    full["channels"][0]["introduction"] = json!({ "commit": id, "signer": id });
    full["channels"][0]["url"] = json!("https://me:hush@example.org/x.git");
    full["notifications"] =
        json!([{ "type": "webhook", "url": "https://hook/x?key=hush", "secret": "hush" }]);
    full["build-outputs"] =
        json!([{ "job": "x", "type": "archive", "output": "out", "path": "a" }]);
    full["active"] = json!(false);
    site.daemon.ask(&format!("add {full}"));
    let mut expected = kept(&site.daemon, "full");
    log_in(&browser, &site.token);
    browser.open("/jobset/full");
    browser.choose("Edit");
    assert!(!browser.source().contains("hush"), "the form holds a secret");
    browser.replace("[name=priority]", "10");
    // The browser itself knows what is too much.
    browser.click("main button.main");
    assert_eq!(browser.run("return document.activeElement.name"), "priority");
    browser.replace("[name=priority]", "4");
    browser.replace("div.row:first-of-type [name=channel-branch]", "next");
    browser.choose("Save");
    assert_eq!(browser.target(), "/jobset/full");
    expected["priority"] = json!(4);
    expected["channels"][0]["branch"] = json!("next");
    assert_eq!(kept(&site.daemon, "full"), expected);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn builds_are_searched_from_any_page() {
    let mut site = Site::new(usual);
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    browser.open("/metrics");
    browser.leads(|this| this.enter("#query", &format!("bad status:failed{ENTER}")));
    assert_eq!(browser.target(), "/search?query=bad+status%3Afailed");
    let rows = browser.run(
        "return [...document.querySelectorAll('tbody td.name')].map(cell => cell.textContent)",
    );
    assert_eq!(rows, json!(["bad"]));
    assert_eq!(browser.run("return document.querySelector('#query').value"), "bad status:failed");
    let id = site.build("bad");
    browser.choose("bad");
    assert_eq!(browser.target(), format!("/build/{id}/details"));
    // What is typed into a filter acts at once.
    browser.open("/");
    browser.enter("[name=filter]", "nothing");
    let hidden = browser.run("return document.querySelector('#jobsets tbody tr').hidden");
    assert_eq!(hidden, true);
    browser.replace("[name=filter]", "HEL");
    let hidden = browser.run("return document.querySelector('#jobsets tbody tr').hidden");
    assert_eq!(hidden, false);
    assert_eq!(browser.complaints(), [""; 0]);
}
