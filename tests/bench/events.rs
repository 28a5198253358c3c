//! From the end of a build to the page that somebody looks at, in a real browser.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::Duration;

use nix::sys::stat::Mode;

use super::browser::Browser;
use super::daemon::Daemon;
use super::http::Web;
use super::jobs::{Repository, job};
use super::{millis, percentile, report};

/// Builds that end one after the other, all on the first page of their evaluation.
const BUILDS: usize = 30;

/// Between two ends: longer than the script lets pass between two looks.
const APART: Duration = Duration::from_millis(600);

/// Notes when a job is first shown to have succeeded.
const WATCH: &str = "
    window.seen = {};
    const look = () => {
        for (const row of document.querySelectorAll('[data-live=jobs] tbody tr')) {
            const name = row.querySelector('.name').textContent;
            if (row.textContent.includes('Succeeded')) window.seen[name] ??= Date.now();
        }
    };
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true });";

/// What passes between the last act of a build and its row in the page.
pub(super) fn events() {
    let what = "end of a build to the DOM of its evaluation's page";
    let repository = Repository::new(1);
    let place = repository.path().join(".git");
    let mut script = String::new();
    for n in 0..BUILDS {
        nix::unistd::mkfifo(&place.join(format!("go-{n}")), Mode::S_IRWXU).unwrap();
        let (go, ended) = (place.join(format!("go-{n}")), place.join(format!("ended-{n}")));
        let command = format!("read line < {}; date +%s%N > {}", go.display(), ended.display());
        script += &job(&format!("job-{n}"), &command, "");
    }
    repository.set_jobs(&script);
    let slots = format!("--max-builds={BUILDS}");
    let mut daemon = Daemon::prepare(&["--web=127.0.0.1:0", "--interval=3600", &slots]);
    daemon.environment("GORGET_LOG", "info");
    daemon.restart();
    daemon.ask(&repository.add("events"));
    daemon.until("builds status=started", |builds| builds.len() == BUILDS);
    let Some(browser) = Browser::start(Web::of(&daemon)) else {
        println!("{what}: skipped");
        return;
    };
    browser.open("/eval/1");
    browser.run(WATCH);
    let mut times: Vec<_> = (0..BUILDS)
        .map(|n| {
            std::thread::sleep(APART);
            let mut go =
                OpenOptions::new().write(true).open(place.join(format!("go-{n}"))).unwrap();
            writeln!(go).unwrap();
            let seen = browser.wait(&format!("return window.seen['job-{n}']")).as_i64().unwrap();
            let ended = fs::read_to_string(place.join(format!("ended-{n}"))).unwrap();
            let ended = ended.trim().parse::<i64>().unwrap() / 1_000_000;
            Duration::from_millis(u64::try_from(seen - ended).unwrap_or(0))
        })
        .collect();
    report(
        what,
        &format!("median {}", millis(percentile(&mut times, 50))),
        &format!(
            "p90 {}, at most {}, {BUILDS} builds",
            millis(percentile(&mut times, 90)),
            millis(percentile(&mut times, 100))
        ),
        "under 200 ms",
    );
}
