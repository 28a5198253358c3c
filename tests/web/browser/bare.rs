//! Without script everything can be read and done, a page at a time.

use super::{Site, held, log_in};
use crate::support::browser::{Browser, ENTER};
use crate::support::jobs::job;
use crate::web::change::kept;

#[test]
fn without_script_everything_can_be_done() {
    let mut site = Site::new(|repository| {
        let slow = format!("echo begun; {}; echo last", held(repository, "end"));
        [job("slow", &slow, ""), job("bad", "exit 3", "")].concat()
    });
    site.becomes("slow", "started");
    site.becomes("bad", "failed");
    let Some(browser) = Browser::without_script(site.web) else { return site.release("end") };
    // Script is off indeed.
    browser.open_inline("<title>bare</title><script>document.title = 'not'</script>");
    assert_eq!(browser.run("return document.title"), "bare");
    let (slow, bad) = (site.build("slow"), site.build("bad"));
    log_in(&browser, &site.token);
    // A log is read, and read again.
    let log = format!("/build/{slow}/log");
    browser.open(&log);
    assert!(browser.text("pre.log").contains("begun"));
    site.release("end");
    site.becomes("slow", "succeeded");
    browser.open(&log);
    assert!(browser.text("pre.log").ends_with("last"), "{}", browser.text("pre.log"));
    assert!(browser.text("[data-live=status]").contains("Succeeded"));
    // Trigger.
    site.repository.set_jobs(&[job("new", "true", ""), job("bad", "exit 3", "")].concat());
    browser.open("/");
    browser.choose("hello");
    browser.choose("Look at the channels now");
    assert_eq!(browser.target(), "/jobset/hello");
    site.daemon.until("evaluations hello", |all| all.len() == 2);
    site.daemon.settle();
    browser.open("/jobset/hello");
    let rows =
        browser.run("return document.querySelectorAll('[data-live=evaluations] tbody tr').length");
    assert_eq!(rows, 2);
    // Restart, without a question; rebuild all, with one.
    browser.open(&format!("/build/{bad}/details"));
    browser.choose("Restart");
    let attempts = |site: &mut Site| site.daemon.build("bad")["attempts"].as_i64().unwrap();
    site.daemon.settle();
    assert_eq!(attempts(&mut site), 1);
    browser.open("/eval/2");
    browser.choose("Rebuild all");
    assert!(browser.text("h1").starts_with("Rebuild all"), "{}", browser.text("h1"));
    browser.choose("Rebuild all");
    assert_eq!(browser.target(), "/eval/2");
    site.daemon.settle();
    // Search and filter.
    browser.open("/workers");
    browser.leads(|this| this.enter("#query", &format!("slow{ENTER}")));
    assert!(browser.text("tbody").contains("slow"));
    browser.open("/?show=all");
    browser.enter("[name=filter]", "nothing");
    browser.choose("Apply");
    assert!(browser.text("main").contains("No jobset matches."));
    // Edit.
    browser.open("/jobset/hello");
    browser.choose("Edit");
    browser.replace("[name=period]", "77");
    browser.choose("Save");
    assert_eq!(kept(&site.daemon, "hello")["period"], 77);
    // Confirm what cannot be undone, and leave.
    browser.choose("Delete");
    browser.choose("Delete");
    assert_eq!(browser.target(), "/");
    assert!(site.daemon.ask("jobsets").is_empty());
    browser.leads(|this| this.click("form.who button"));
    assert!(browser.text("header").contains("Log in"));
    assert_eq!(browser.complaints(), [""; 0]);
}
