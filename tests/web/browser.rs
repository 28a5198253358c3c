//! The pages in a real browser, with real builds behind them: what people do, and how it is to be read and reached.

mod act;
mod bare;
mod keys;
mod sound;

use super::access::token;
use crate::support::browser::Browser;
use crate::support::daemon::Daemon;
use crate::support::http::Web;
use crate::support::jobs::{Repository, job};

/// A daemon with one jobset, `hello`, and a token to change it with.
struct Site {
    daemon: Daemon,
    repository: Repository,
    web: Web,
    token: String,
}

impl Site {
    /// With jobs of which each may wait for the test, see [`held`].
    fn new(jobs: impl Fn(&Repository) -> String) -> Self {
        let repository = Repository::new(0);
        repository.set_jobs(&jobs(&repository));
        let mut daemon = Daemon::start(&["--web=127.0.0.1:0", "--max-builds=4"]);
        daemon.ask(&repository.add("hello"));
        let web = Web::of(&daemon);
        let token = token(&mut daemon, "me", "admin", "");
        Self { daemon, repository, web, token }
    }

    /// Lets what waits for this go on.
    fn release(&self, name: &str) {
        self.repository.write(&format!(".git/{name}"), "");
    }

    /// The build of a job.
    fn build(&mut self, job: &str) -> i64 {
        self.daemon.build(job)["id"].as_i64().unwrap()
    }

    /// Waits until a job's build has this status.
    fn becomes(&mut self, job: &str, status: &str) {
        let is = |build: &serde_json::Value| build["job"] == job && build["status"] == status;
        self.daemon.until("builds", |builds| builds.iter().any(is));
    }
}

/// A command that waits until the test releases `name`.
fn held(repository: &Repository, name: &str) -> String {
    let place = repository.path().join(".git").join(name);
    format!("while [ ! -e {} ]; do sleep 0.02; done", place.display())
}

/// Jobs that succeed, fail, and do so because of others.
fn usual(_: &Repository) -> String {
    [
        job("good", "echo fine", ""),
        job("bad", "echo wrong; exit 3", ""),
        job("needy", "true", "\"needs\":[\"bad\"]"),
    ]
    .concat()
}

/// Logs in as people do.
fn log_in(browser: &Browser, token: &str) {
    browser.open("/login");
    browser.enter("#token", token);
    browser.choose("Log in");
    assert_eq!(browser.target(), "/");
    assert!(browser.text("header").contains("Log out"), "{}", browser.text("header"));
}
