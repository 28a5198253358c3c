//! A farm whose server and worker have stores of their own: derivations go to the worker, results come back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::farm::{Server, Worker, add};
use crate::support::is_root;
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;
use crate::support::until;

/// A pair of keys as Nix makes them, in a directory of its own.
struct Keys {
    directory: tempfile::TempDir,
    public: String,
}

impl Keys {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (secret, public) = (directory.path().join("secret"), directory.path().join("public"));
        let status = Command::new("nix-store")
            .args(["--generate-binary-cache-key", name])
            .args([&secret, &public])
            .status()
            .unwrap();
        assert!(status.success());
        let public = fs::read_to_string(public).unwrap();
        Self { directory, public }
    }
}

/// Whatever serves a store of Nix as a binary cache: this copies what it is asked for to a directory, and serves that.
struct Publisher {
    server: Arc<tiny_http::Server>,
    port: u16,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Trouble>>,
    _cache: tempfile::TempDir,
}

/// What a publisher does to requests for items of this name.
#[derive(Default)]
struct Trouble {
    /// It says that they are not there.
    lacks: Option<String>,
    /// It does not answer.
    hangs: Option<String>,
    unanswered: Vec<tiny_http::Request>,
}

impl Publisher {
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer of the code under test, joined at its end"
    )]
    fn of(store: &Store, keys: &Keys) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
        let port = server.server_addr().to_ip().unwrap().port();
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let files = Files {
            store: store.directory.path().join("store"),
            from: format!(
                "unix://{}?real={}/store",
                store.socket(),
                store.directory.path().display()
            ),
            called: store.environment(),
            secret: keys.directory.path().join("secret"),
            cache: cache.path().to_owned(),
        };
        let (listener, troubled) = (Arc::clone(&server), Arc::clone(&trouble));
        let serve = move || {
            for request in listener.incoming_requests() {
                let item = files.item(request.url()).unwrap_or_default();
                let is = |name: &Option<String>| {
                    name.as_ref().is_some_and(|name| item.ends_with(&format!("-{name}")))
                };
                let mut trouble = troubled.lock().unwrap();
                if is(&trouble.hangs) {
                    trouble.unanswered.push(request);
                    continue;
                }
                let found = if is(&trouble.lacks) { None } else { files.get(request.url()) };
                drop(trouble);
                answer(request, found);
            }
        };
        let thread = Some(std::thread::spawn(serve));
        Self { server, port, thread, trouble, _cache: cache }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn trouble(&self, change: impl FnOnce(&mut Trouble)) {
        change(&mut self.trouble.lock().unwrap());
    }
}

fn answer(request: tiny_http::Request, found: Option<Vec<u8>>) {
    let response = match found {
        Some(bytes) => tiny_http::Response::from_data(bytes),
        None => tiny_http::Response::from_data(vec![]).with_status_code(404),
    };
    // The client may have gone.
    let _ = request.respond(response);
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// What a publisher has.
struct Files {
    store: PathBuf,
    /// The store for `nix`: by its daemon, with its files where they are for us.
    from: String,
    called: Vec<(String, String)>,
    secret: PathBuf,
    cache: PathBuf,
}

impl Files {
    fn get(&self, url: &str) -> Option<Vec<u8>> {
        let name = url.trim_start_matches('/');
        if name == "nix-cache-info" {
            return Some(format!("StoreDir: {}\n", self.directory()).into_bytes());
        }
        if name.ends_with(".narinfo") {
            self.copy(&self.item(url)?)?;
        }
        fs::read(self.cache.join(name)).ok()
    }

    /// The store's directory, as its daemon calls it.
    fn directory(&self) -> &str {
        &self.called.iter().find(|(name, _)| name == "NIX_STORE_DIR").unwrap().1
    }

    /// The item whose description is asked for.
    fn item(&self, url: &str) -> Option<String> {
        let hash = url.strip_prefix('/')?.strip_suffix(".narinfo")?;
        let items = fs::read_dir(&self.store).unwrap().map(|item| item.unwrap().file_name());
        let mut items = items.filter_map(|name| name.into_string().ok());
        items.find(|name| name.starts_with(hash) && !name.ends_with(".lock"))
    }

    /// Copies an item, and what it refers to.
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    fn copy(&self, item: &str) -> Option<()> {
        // The file itself, not what is built by it.
        let itself = item.ends_with(".drv").then_some("--derivation");
        let (cache, secret) = (self.cache.display(), self.secret.display());
        let output = Command::new("nix")
            .args(["--extra-experimental-features", "nix-command", "copy"])
            .args(itself)
            .arg("--from")
            .arg(&self.from)
            .arg("--to")
            .arg(format!("file://{cache}?secret-key={secret}"))
            .arg(format!("{}/{item}", self.directory()))
            .envs(self.called.iter().map(|(name, value)| (name, value)))
            .env("HOME", &self.cache)
            .output()
            .unwrap();
        output.status.success().then_some(())
    }
}

/// They end in this order: the daemon looks whether something is left in its place.
struct Farm {
    _server: Server,
    _worker: Worker,
    daemon: Daemon,
    /// The server's, and the worker's.
    publishers: [Publisher; 2],
    repository: Repository,
    far: Store,
    here: Store,
}

impl Farm {
    /// Without a job; both stores take what is signed with `known`, and what the worker built is signed with `used`.
    fn start(known: &Keys, used: &Keys) -> Self {
        let here = Store::start_trusting(&known.public);
        let far = Store::start_beside(&here);
        let publishers = [Publisher::of(&here, known), Publisher::of(&far, used)];
        let mut daemon = here.gorget(&["--build-remote", "--interval=3600"]);
        let server = Server::start(daemon.state(), &[]);
        let options = [
            "--workers=1".to_owned(),
            format!("--substitute-urls={}", publishers[0].url()),
            format!("--publish-port={}", publishers[1].port),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let address = format!("127.0.0.1:{}", server.port);
        let state = far.directory.path().join("worker");
        let mut worker = Worker::prepare(&state, &address, &[], far.environment(), &options);
        worker.launch();
        daemon.until("workers", |workers| !workers.is_empty());
        let repository = Repository::new(0);
        repository.write("source", "what it is made of\n");
        Self { daemon, _server: server, _worker: worker, publishers, repository, far, here }
    }

    /// Has these built.
    fn add(&mut self, jobs: &[&str]) {
        let jobs: String = jobs.iter().map(|name| job(name)).collect();
        self.repository.write("release.nix", &format!("{{ {jobs} }}"));
        self.repository.commit();
        assert_eq!(self.daemon.outcome(&add(&self.repository)), "ok");
    }

    /// Waits until the build of a job is as `good` wants it.
    fn wait(&mut self, job: &str, good: impl Fn(&Value) -> bool) -> Value {
        let is = |build: &Value| build["nix-name"] == job && good(build);
        let builds = self.daemon.until("builds", |builds| builds.iter().any(is));
        builds.into_iter().find(is).unwrap()
    }

    fn succeeds(&mut self, job: &str) -> Value {
        self.wait(job, |build| build["status"] == "succeeded")
    }

    /// Waits until a try of a job is over which was no failure.
    fn fails_to_come(&mut self, job: &str) -> Value {
        let tried =
            |build: &Value| build["waiting"].as_str().is_some_and(|w| w.starts_with("retry"));
        let build = self.wait(job, tried);
        assert_eq!(build["status"], "scheduled");
        build
    }
}

/// A job that is built from a file of the repository, and refers to it.
fn job(name: &str) -> String {
    format!(
        r#"{name} = derivation {{ name = "{name}"; system = "{}"; builder = "/bin/sh"; PATH = "{}"; source = ./source;
  args = [ "-c" "cat $source; mkdir $out; cp $source $out/copy; echo $source > $out/source" ]; }}; "#,
        system(),
        std::env::var("PATH").unwrap(),
    )
}

/// The file of an item of a store, as it is for us.
fn file(store: &Store, item: &str) -> PathBuf {
    store.directory.path().join("store").join(Path::new(item).file_name().unwrap())
}

#[test]
fn derivations_go_to_workers_and_results_come_back() {
    if !is_root("give two stores one name") {
        return;
    }
    let keys = Keys::new("farm");
    let mut farm = Farm::start(&keys, &keys);
    farm.add(&["job"]);
    let build = farm.succeeds("job");
    assert_eq!(build["attempts"], 1);
    let out = build["outputs"]["out"].as_str().unwrap();
    for store in [&farm.far, &farm.here] {
        let copy = fs::read_to_string(file(store, out).join("copy")).unwrap();
        assert_eq!(copy, "what it is made of\n");
    }
    let root = farm.daemon.state().join("gcroots").join(Path::new(out).file_name().unwrap());
    assert!(root.symlink_metadata().is_ok(), "{} has no root", root.display());
    let log = farm.daemon.ask(&format!("log build {}", build["id"]));
    let said = |text| log.iter().any(|part| part["text"].as_str().unwrap().contains(text));
    assert!(said("fetching") && said("what it is made of"), "{log:?}");
}

/// They are there at the next try: that they were not once is not remembered.
#[test]
fn results_that_are_not_there_are_asked_for_again() {
    if !is_root("give two stores one name") {
        return;
    }
    let keys = Keys::new("farm");
    let mut farm = Farm::start(&keys, &keys);
    farm.publishers[1].trouble(|trouble| trouble.lacks = Some("job".to_owned()));
    farm.add(&["job"]);
    let build = farm.fails_to_come("job");
    let error = build["error"].as_str().unwrap();
    assert!(error.starts_with("cannot fetch /"), "{error}");
    farm.publishers[1].trouble(|trouble| trouble.lacks = None);
    for request in ["cancel-build", "restart-build"] {
        assert_eq!(farm.daemon.outcome(&format!("{request} {}", build["id"])), "ok");
    }
    farm.succeeds("job");
}

#[test]
fn results_of_an_unknown_key_are_not_taken() {
    if !is_root("give two stores one name") {
        return;
    }
    let (known, other) = (Keys::new("farm"), Keys::new("other"));
    let mut farm = Farm::start(&known, &other);
    farm.add(&["job"]);
    let build = farm.fails_to_come("job");
    let error = build["error"].as_str().unwrap();
    assert!(error.contains("is not signed by") && error.contains("trusted-public-keys"), "{error}");
    let out = build["outputs"]["out"].as_str().unwrap();
    assert!(file(&farm.far, out).exists() && !file(&farm.here, out).exists());
}

/// Whatever comes from a machine that says nothing is waited for beside everything else, also by the daemon's next life.
#[test]
fn a_result_that_does_not_come_holds_up_no_other() {
    if !is_root("give two stores one name") {
        return;
    }
    let keys = Keys::new("farm");
    let mut farm = Farm::start(&keys, &keys);
    farm.publishers[1].trouble(|trouble| trouble.hangs = Some("stuck".to_owned()));
    farm.add(&["fine", "stuck"]);
    farm.succeeds("fine");
    let asked = |publisher: &Publisher| publisher.trouble.lock().unwrap().unanswered.len();
    until("the request", || (asked(&farm.publishers[1]) == 1).then_some(()));
    farm.daemon.kill();
    farm.daemon.restart();
    until("another request", || (asked(&farm.publishers[1]) == 2).then_some(()));
    let stuck = farm.wait("stuck", |_| true);
    assert_eq!(stuck["status"], "started");
    let mut unanswered = Vec::new();
    farm.publishers[1].trouble(|trouble| {
        trouble.hangs = None;
        unanswered = std::mem::take(&mut trouble.unanswered);
    });
    // They are as good as lost: the daemon asks again.
    drop(unanswered);
    assert_eq!(farm.succeeds("stuck")["attempts"], 1);
}
