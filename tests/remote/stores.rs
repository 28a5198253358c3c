//! A farm whose server and worker have stores of their own: derivations go to the worker, results come back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::farm::{Server, Worker, add};
use crate::support::is_root;
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;

/// Whatever serves a store of Nix as a binary cache: this copies what it is asked for to a directory, and serves that.
struct Publisher {
    server: Arc<tiny_http::Server>,
    port: u16,
    thread: Option<JoinHandle<()>>,
    _cache: tempfile::TempDir,
}

impl Publisher {
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer of the code under test, joined at its end"
    )]
    fn of(store: &Store) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
        let port = server.server_addr().to_ip().unwrap().port();
        let files = Files {
            store: store.directory.path().join("store"),
            from: format!(
                "unix://{}?real={}/store",
                store.socket(),
                store.directory.path().display()
            ),
            called: store.environment(),
            cache: cache.path().to_owned(),
        };
        let listener = Arc::clone(&server);
        let serve = move || {
            for request in listener.incoming_requests() {
                let response = match files.get(request.url()) {
                    Some(bytes) => tiny_http::Response::from_data(bytes),
                    None => tiny_http::Response::from_data(vec![]).with_status_code(404),
                };
                // The client may have gone.
                let _ = request.respond(response);
            }
        };
        let thread = Some(std::thread::spawn(serve));
        Self { server, port, thread, _cache: cache }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
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
    cache: PathBuf,
}

impl Files {
    fn get(&self, url: &str) -> Option<Vec<u8>> {
        let name = url.trim_start_matches('/');
        if name == "nix-cache-info" {
            let (_, store) = self.called.iter().find(|(name, _)| name == "NIX_STORE_DIR").unwrap();
            return Some(format!("StoreDir: {store}\n").into_bytes());
        }
        if let Some(hash) = name.strip_suffix(".narinfo") {
            self.copy(hash)?;
        }
        fs::read(self.cache.join(name)).ok()
    }

    /// Copies the item with this hash, and what it refers to.
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    fn copy(&self, hash: &str) -> Option<()> {
        let items = fs::read_dir(&self.store).unwrap().map(|item| item.unwrap().file_name());
        let mut items = items.filter_map(|name| name.into_string().ok());
        let item = items.find(|name| name.starts_with(hash) && !name.ends_with(".lock"))?;
        let (_, store) = self.called.iter().find(|(name, _)| name == "NIX_STORE_DIR").unwrap();
        // The file itself, not what is built by it.
        let itself = item.ends_with(".drv").then_some("--derivation");
        let output = Command::new("nix")
            .args(["--extra-experimental-features", "nix-command", "copy"])
            .args(itself)
            .arg("--from")
            .arg(&self.from)
            .arg("--to")
            .arg(format!("file://{}", self.cache.display()))
            .arg(format!("{store}/{item}"))
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
    _publishers: [Publisher; 2],
    _repository: Repository,
    far: Store,
    here: Store,
}

impl Farm {
    /// With what the worker's daemon and the server's take for a place of substitutes.
    fn start(publish_results: bool) -> Self {
        let here = Store::start();
        let far = Store::start_beside(&here);
        let publishers = [Publisher::of(&here), Publisher::of(&far)];
        let mut daemon = here.gorget(&["--build-remote", "--interval=3600"]);
        let server = Server::start(daemon.state(), &[]);
        let port =
            if publish_results { publishers[1].port } else { crate::support::farm::free_port() };
        let options = [
            "--workers=1".to_owned(),
            format!("--substitute-urls={}", publishers[0].url()),
            format!("--publish-port={port}"),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let address = format!("127.0.0.1:{}", server.port);
        let state = far.directory.path().join("worker");
        let mut worker = Worker::prepare(&state, &address, &[], far.environment(), &options);
        worker.launch();
        let repository = Repository::new(0);
        repository.write("release.nix", &expression());
        repository.write("source", "what it is made of\n");
        repository.commit();
        daemon.ask(&add(&repository));
        Self {
            daemon,
            _server: server,
            _worker: worker,
            _publishers: publishers,
            _repository: repository,
            far,
            here,
        }
    }

    fn wait(&mut self, good: impl Fn(&Value) -> bool) -> Value {
        let builds = self.daemon.until("builds", |builds| builds.iter().any(&good));
        builds.into_iter().find(|build| good(build)).unwrap()
    }
}

/// A job that is built from a file of the repository, and refers to it.
fn expression() -> String {
    format!(
        r#"{{ job = derivation {{ name = "job"; system = "{}"; builder = "/bin/sh"; PATH = "{}"; source = ./source;
  args = [ "-c" "cat $source; mkdir $out; cp $source $out/copy; echo $source > $out/source" ]; }}; }}"#,
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
    let mut farm = Farm::start(true);
    let build = farm.wait(|build| build["status"] == "succeeded");
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

#[test]
fn results_that_cannot_be_fetched_are_no_failure() {
    if !is_root("give two stores one name") {
        return;
    }
    let mut farm = Farm::start(false);
    let build =
        farm.wait(|build| build["waiting"].as_str().is_some_and(|w| w.starts_with("retry")));
    assert_eq!(build["status"], "scheduled");
    let error = build["error"].as_str().unwrap();
    assert!(error.starts_with("cannot fetch /"), "{error}");
}
