//! Every kind of page: no complaint of the browser, no violation that axe-core finds in light or dark, nothing wider
//! than a phone.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{held, log_in};
use crate::support::browser::{Browser, missing};
use crate::support::daemon::Daemon;
use crate::support::http::Web;
use crate::support::jobs::{Repository, job, system};
use crate::web::access::token;

/// Widths of phones, in CSS's pixels: the narrowest and the commonest.
const PHONES: [u32; 2] = [360, 390];

/// More jobs than a page shows.
const MANY: usize = 60;

/// What is wider than the window, and not in something that scrolls by itself.
const WIDE: &str = "
    const most = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= most) return [];
    const scrolls = (node) => node && (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
    const wide = [...document.body.querySelectorAll('*')].filter((node) =>
        node.getBoundingClientRect().right > most + 0.5 && !scrolls(node.parentElement));
    return [`${document.documentElement.scrollWidth} px`, ...wide.slice(0, 5).map((node) =>
        `${node.outerHTML.slice(0, 120)} to ${node.getBoundingClientRect().right}`)];";

/// What axe-core finds with the rules that `which` tells.
const AXE: &str = "
    axe.run(document, { resultTypes: ['violations'], ...which }).then(({ violations }) =>
        done(violations.flatMap(({ id, nodes }) =>
            nodes.map((node) => `${id}: ${node.html.slice(0, 200)} (${node.failureSummary})`))));";

/// Colour schemes, and the rules for each: by default all of axe-core's; in the second those that colours decide, as
/// nothing else is another than in the first.
const SCHEMES: [(&str, &str); 2] = [
    ("light", "const which = {};"),
    ("dark", "const which = { runOnly: ['color-contrast', 'link-in-text-block'] };"),
];

/// The links of a page that stay on the site.
const LINKS: &str = "return [...document.links].filter((link) => link.host === location.host)
    .map((link) => link.pathname)";

/// A daemon with something on every page.
struct Full {
    daemon: Daemon,
    web: Web,
    repository: Repository,
    _others: [Repository; 2],
}

fn jobs(version: u32) -> String {
    let long = "a-name-that-does-not-end".repeat(5);
    [
        job("compile", &format!("echo compiling {version}; test {version} != 2"), ""),
        job("tests", &format!("echo testing {version}"), "\"needs\":[\"compile\"]"),
        job(
            "gtk+/de mo",
            &format!(
                "for n in 1 2 3 4 5 6 7; do printf \"\\033[3${{n}}mcolour\\033[0m \\033[4${{n}}mground\\033[0m\\n\"; \
                 done; printf '\\033[1mbold\\033[2mdim\\033[7minverse\\033[0m\\n{}\\n'; echo x > file",
                "x".repeat(300)
            ),
            "\"products\":[\"file\"]",
        ),
        job(&long, &format!("echo never {version}; exit 3"), ""),
    ]
    .concat()
}

impl Full {
    fn start() -> Self {
        let repository = Repository::with_jobs(&jobs(1));
        let mut daemon = Daemon::start(&["--web=127.0.0.1:0", "--max-builds=1"]);
        daemon.ask(&repository.add("a+b"));
        daemon.settle();
        repository.set_jobs(&jobs(2));
        daemon.ask("trigger a+b");
        daemon.until("evaluations a+b", |all| all.len() == 2 && all[0]["status"] == "succeeded");
        daemon.settle();
        let wrong = Repository::with_jobs("echo it is wrong >&2; exit 1");
        daemon.ask(&wrong.add("wrong"));
        let mut off = wrong.specification("off", &["./jobs"]);
        off["active"] = json!(false);
        daemon.ask(&format!("add {off}"));
        let many = Repository::new(0);
        let line = |n: usize| json!({ "job": format!("many-{n}"), "system": system(), "error": "unbound variable" });
        let lines: Vec<_> = (0..MANY).map(|n| line(n).to_string()).collect();
        let slow = job("slow", &format!("echo begun; {}", held(&many, "end")), "");
        let later = job("later", "true", "\"needs\":[\"slow\"]");
        many.set_jobs(&format!("{slow}{later}cat <<'LINES'\n{}\nLINES\n", lines.join("\n")));
        daemon.ask(&many.add("many"));
        daemon.until("builds status=started", |builds| builds.len() == 1);
        daemon.until("evaluations many", |all| all[0]["status"] == "succeeded");
        daemon.until("jobset wrong", |jobset| !jobset[0]["error"].is_null());
        let web = Web::of(&daemon);
        Self { daemon, web, repository: many, _others: [repository, wrong] }
    }

    /// One page of each kind, and of each kind of what there is to be seen on it.
    fn pages(&mut self) -> Vec<String> {
        let mut id = |job: &str| self.daemon.build(job)["id"].as_i64().unwrap();
        let (compile, tests, demo) = (id("compile"), id("tests"), id("gtk+/de mo"));
        let (slow, later) = (id("slow"), id("later"));
        let evaluation = self.daemon.ask("evaluations many")[0]["id"].as_i64().unwrap();
        let wrong = self.daemon.ask("evaluations wrong")[0]["id"].as_i64().unwrap();
        let made = self.web.json("/api/dashboard/register?spec=a%2Bb&names=compile,tests");
        let dashboard = made["id"].as_str().unwrap();
        let system = system();
        vec![
            "/".to_owned(),
            "/?show=all".to_owned(),
            "/?filter=nothing".to_owned(),
            "/jobset/a+b".to_owned(),
            "/jobset/wrong".to_owned(),
            "/jobset/off".to_owned(),
            format!("/jobset/a+b/job/gtk%2B%2Fde%20mo?system={system}"),
            "/eval/2".to_owned(),
            "/eval/2?status=newly-failed".to_owned(),
            format!("/eval/{evaluation}"),
            format!("/eval/{wrong}"),
            "/eval/2/compare?from=1".to_owned(),
            "/eval/2/dashboard".to_owned(),
            format!("/eval/{evaluation}/dashboard"),
            format!("/eval/2/dashboard/{dashboard}"),
            format!("/eval/{wrong}/log"),
            format!("/build/{compile}/details"),
            format!("/build/{tests}/details"),
            format!("/build/{demo}/details"),
            format!("/build/{slow}/details"),
            format!("/build/{later}/details"),
            format!("/build/{demo}/log"),
            format!("/build/{slow}/log"),
            "/queue".to_owned(),
            "/status".to_owned(),
            "/workers".to_owned(),
            "/machine/local".to_owned(),
            "/metrics".to_owned(),
            "/search".to_owned(),
            "/search?query=compile".to_owned(),
            "/search?query=colour:red".to_owned(),
            "/login".to_owned(),
            "/specification/add".to_owned(),
            "/specification/edit/a+b".to_owned(),
            "/admin/audit".to_owned(),
            "/admin/specifications/delete/off".to_owned(),
            format!("/admin/build/{later}/prioritize"),
            "/build/999999/details".to_owned(),
        ]
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.repository.write(".git/end", "");
    }
}

/// The pages as somebody sees them.
struct Looker {
    browser: Browser,
    axe: Option<String>,
    /// What is wrong with them, one line each.
    wrong: Vec<String>,
    /// Where their links lead.
    links: BTreeSet<String>,
}

impl Looker {
    fn new(browser: Browser) -> Self {
        Self { browser, axe: axe(), wrong: Vec::new(), links: BTreeSet::new() }
    }

    fn screen(&self, width: u32, height: u32) {
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 0, "mobile": false });
        self.browser.devtools("Emulation.setDeviceMetricsOverride", &screen);
    }

    fn tell(&mut self, what: &str, found: Vec<String>) {
        self.wrong.extend(found.into_iter().map(|line| format!("{what}: {line}")));
    }

    fn look_at_all(&mut self, pages: &[String]) {
        for page in pages {
            self.browser.open(page);
            self.look(page);
        }
    }

    /// Looks at the page that is open.
    fn look(&mut self, page: &str) {
        self.links.extend(lines(&self.browser.run(LINKS)));
        for width in PHONES {
            self.screen(width, 740);
            let found = lines(&self.browser.run(WIDE));
            self.tell(&format!("{page} on {width} px"), found);
        }
        self.screen(1280, 900);
        if let Some(axe) = &self.axe {
            self.browser.run(axe);
            for (scheme, which) in SCHEMES {
                let wanted = json!({ "name": "prefers-color-scheme", "value": scheme });
                self.browser
                    .devtools("Emulation.setEmulatedMedia", &json!({ "features": [wanted] }));
                let found = lines(&self.browser.run_until_done(&format!("{which}{AXE}")));
                self.tell(&format!("{page} {scheme}"), found);
            }
        }
        let mut complaints = self.browser.complaints();
        // That a page is an error's is what was asked for.
        complaints.retain(|line| !line.contains("responded with a status of 4"));
        self.tell(&format!("{page} console"), complaints);
    }

    /// Asserts that nothing is wrong, and that of each kind of page that is linked to one was looked at.
    fn conclude(self, pages: &[String]) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        let seen: BTreeSet<String> = pages.iter().map(|page| kind(page)).collect();
        let linked: BTreeSet<String> = self.links.iter().map(|link| kind(link)).collect();
        let left: Vec<_> = linked.difference(&seen).filter(|kind| !is_elsewhere(kind)).collect();
        assert!(left.is_empty(), "not looked at: {left:?}");
    }
}

fn lines(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// A target without what it is about: a page's kind.
fn kind(target: &str) -> String {
    const NAMED: [&str; 5] = ["jobset", "job", "machine", "dashboard", "edit"];
    let path = target.split('?').next().unwrap();
    if path.starts_with("/admin/") && path != "/admin/audit" {
        return "a question".to_owned();
    }
    let mut named = false;
    let of = |part: &str| {
        let any = named || (!part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()));
        named = NAMED.contains(&part);
        if any { "*".to_owned() } else { part.to_owned() }
    };
    path.split('/').map(of).collect::<Vec<_>>().join("/")
}

/// What is no page, or leads to one that is looked at.
fn is_elsewhere(kind: &str) -> bool {
    let endings = ["/raw", "/badge.svg", "/channels.scm", "/events/rss"];
    endings.iter().any(|ending| kind.ends_with(ending))
        || kind == "/download/*"
        || kind.starts_with("/eval/latest")
}

/// axe-core's script: what `make axe` fetches, or another that `GORGET_TEST_AXE` names.
fn axe() -> Option<String> {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/target/axe/axe.min.js");
    let file =
        std::env::var_os("GORGET_TEST_AXE").map_or_else(|| PathBuf::from(usual), PathBuf::from);
    let text = std::fs::read_to_string(&file).ok();
    if text.is_none() {
        missing(&format!("axe-core is not in {}: make axe", file.display()));
    }
    text
}

#[test]
fn every_page_is_sound_for_those_who_read() {
    let mut full = Full::start();
    let Some(browser) = Browser::start(full.web) else { return };
    let mut looker = Looker::new(browser);
    let pages = full.pages();
    looker.look_at_all(&pages);
    // Who may not come in.
    looker.browser.open("/login");
    looker.browser.enter("#token", "wrong");
    looker.browser.choose("Log in");
    looker.look("a login that fails");
    looker.conclude(&pages);
}

#[test]
fn every_page_is_sound_for_those_who_change() {
    let mut full = Full::start();
    let Some(browser) = Browser::start(full.web) else { return };
    let admin = token(&mut full.daemon, "admin", "admin", "");
    log_in(&browser, &admin);
    let mut looker = Looker::new(browser);
    let pages = full.pages();
    looker.look_at_all(&pages);
    // A form with what is not valid.
    looker.browser.open("/specification/add");
    looker.browser.enter("[name=name]", "off");
    looker.browser.replace("div.row:first-of-type [name=channel-url]", "nowhere");
    looker.browser.choose("Add");
    assert!(looker.browser.text("main").contains("not valid yet"));
    looker.look("a form that is not valid");
    looker.conclude(&pages);
}
