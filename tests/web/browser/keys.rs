//! The keyboard alone reaches everything, in order and visibly, and does it.

use serde_json::Value;

use super::{Site, log_in, usual};
use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::jobs::system;

/// Notes what gets the focus, and how that is seen.
const WATCH: &str = "
    window.focused = [];
    document.addEventListener('focusin', ({ target }) => {
        const style = getComputedStyle(target), box = target.getBoundingClientRect();
        const shown = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1
            && target.matches(':focus-visible') && box.width > 0 && box.height > 0
            && box.left >= 0 && box.right <= innerWidth
            // Of what is tall, the part with the cursor; scrolling is by whole pixels.
            && Math.min(box.bottom, innerHeight) - Math.max(box.top, 0) >= Math.min(box.height, 48) - 1;
        window.focused.push([target, shown]);
    });";

/// What there is to be reached and can be seen, or is there for the keyboard alone; and what became of it: one line
/// for each that was not reached in its turn, or whose focus is not seen.
const CHECK: &str = "
    const name = (node) => `${node.localName} ${node.name || node.className} ${node.textContent.trim().slice(0, 40)}`;
    const wanted = [...document.querySelectorAll('a[href], button, input, select, textarea, summary')]
        .filter((node) => node.type !== 'hidden' && node.checkVisibility());
    const focused = window.focused.filter(([node]) => wanted.includes(node));
    const wrong = wanted.flatMap((node, n) => {
        if (focused[n]?.[0] !== node) return [`${name(node)} is not reached in its turn`];
        return focused[n][1] ? [] : [`${name(node)}: the focus is not seen`];
    });
    return [wanted.length, wrong];";

/// Presses Tab until the focus is on what a condition on `node` tells.
#[track_caller]
fn tab_to(browser: &Browser, condition: &str) {
    let there = format!("const node = document.activeElement; return {condition}");
    for _ in 0..100 {
        browser.press(TAB);
        if browser.run(&there) == true {
            return;
        }
    }
    panic!("Tab does not lead to {condition}");
}

#[test]
fn the_keyboard_reaches_everything_and_shows_where_it_is() {
    let mut site = Site::new(usual);
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    log_in(&browser, &site.token);
    let bad = site.build("bad");
    // A second evaluation, so that there is something to draw.
    site.daemon.ask("retry-evaluation 1");
    site.daemon.until("evaluations hello", |all| all.len() == 2);
    site.daemon.settle();
    for target in [
        "/",
        "/jobset/hello",
        &format!("/jobset/hello/job/bad?system={}", system()),
        "/eval/1",
        &format!("/build/{bad}/details"),
        "/queue",
        "/eval/1/dashboard",
        "/admin/jobset/hello/trigger",
        "/specification/edit/hello",
        "/login",
    ] {
        browser.open(target);
        browser.run(WATCH);
        let count = browser.run(CHECK)[0].as_u64().unwrap();
        // Regions that scroll take the focus besides.
        browser.press(&TAB.repeat(usize::try_from(count).unwrap() + 8));
        let Value::Array(found) = browser.run(CHECK) else { panic!() };
        assert!(count > 10, "{target}: {count}");
        assert_eq!(found[1], serde_json::json!([]), "{target}");
    }
}

#[test]
fn the_keyboard_skips_navigates_searches_and_acts() {
    let mut site = Site::new(usual);
    site.daemon.settle();
    let Some(browser) = Browser::start(site.web) else { return };
    // Logging in.
    browser.open("/");
    tab_to(&browser, "node.textContent === 'Log in'");
    browser.leads(|this| this.press(ENTER));
    tab_to(&browser, "node.id === 'token'");
    browser.leads(|this| this.press(&format!("{}{ENTER}", site.token)));
    assert_eq!(browser.target(), "/");
    // Skipping.
    browser.press(TAB);
    let first = "const node = document.activeElement; return [node.className, node.getBoundingClientRect().left > 0]";
    assert_eq!(browser.run(first), serde_json::json!(["skip", true]));
    browser.press(ENTER);
    assert_eq!(browser.run("return document.activeElement.id"), "content");
    browser.press(TAB);
    let inside = browser.run("return document.activeElement.closest('main') !== null");
    assert_eq!(inside, true);
    // Navigating and searching.
    browser.open("/");
    tab_to(&browser, "node.textContent === 'Queue'");
    browser.leads(|this| this.press(ENTER));
    assert_eq!(browser.target(), "/queue");
    tab_to(&browser, "node.id === 'query'");
    browser.leads(|this| this.press(&format!("good{ENTER}")));
    assert_eq!(browser.target(), "/search?query=good");
    // Acting, at once and with a question.
    site.repository.set_jobs("echo nothing new >&2");
    browser.open("/jobset/hello");
    tab_to(&browser, "node.textContent === 'Look at the channels now'");
    browser.leads(|this| this.press(ENTER));
    site.daemon.until("evaluations hello", |all| all.len() == 2);
    tab_to(&browser, "node.textContent === 'Deactivate'");
    browser.leads(|this| this.press(ENTER));
    tab_to(&browser, "node.textContent === 'Deactivate'");
    browser.leads(|this| this.press(ENTER));
    assert_eq!(site.daemon.ask("jobset hello")[0]["active"], false);
    assert_eq!(browser.complaints(), [""; 0]);
}
