//! A real browser: Chromium, headless, driven over loopback by the WebDriver protocol that chromedriver speaks.
//!
//! It is alone with the site under test: its profile, home and temporary files are a directory that goes with it, it
//! resolves no names but loopback's, and nothing of it works in the background. chromedriver leads a process group, in
//! which its browsers are, too; that group is killed when the browser is dropped.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::Web;
use super::{PATIENCE, until};

/// Milliseconds that a script may wait for what a page is to become: as long as anything else may take.
const SCRIPT: u64 = 60_000;

/// A desk's screen; tests that mean a phone say so.
const SIZE: (u32, u32) = (1280, 900);

/// What WebDriver calls an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";

/// Settings that keep the browser from anything but showing pages.
const QUIET: &[&str] = &[
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--no-first-run",
    "--no-pings",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// A browser with one window, looking at one site.
pub(crate) struct Browser {
    /// Keeps its connection to chromedriver.
    agent: ureq::Agent,
    /// Where sessions of chromedriver are.
    sessions: String,
    session: String,
    site: Web,
    child: Child,
    _directory: TempDir,
}

/// What a command of WebDriver was refused with.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl Browser {
    /// A browser that looks at `site`. `None` where there is none, which is said, and fails where `CI` is set.
    pub(crate) fn start(site: Web) -> Option<Self> {
        Self::with(site, &json!({}))
    }

    /// One that runs no script of any page.
    pub(crate) fn without_script(site: Web) -> Option<Self> {
        Self::with(site, &json!({ "profile.managed_default_content_settings.javascript": 2 }))
    }

    fn with(site: Web, preferences: &Value) -> Option<Self> {
        let (chromium, driver) = (program("chromium")?, program("chromedriver")?);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let output = std::fs::File::create(path.join("output")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a real program, killed when dropped")]
        let child = Command::new(driver)
            .arg("--port=0")
            .env("HOME", &path)
            .env("TMPDIR", &path)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .process_group(0)
            .spawn()
            .unwrap();
        let address = || {
            let text = std::fs::read_to_string(path.join("output")).unwrap();
            let (_, rest) = text.split_once("started successfully on port ")?;
            let port: u16 = rest.split('.').next()?.parse().ok()?;
            Some(format!("http://127.0.0.1:{port}/session"))
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(2 * PATIENCE))
            .proxy(None)
            .build()
            .new_agent();
        // From here on the child ends with what is built, whatever goes wrong.
        let mut this = Self {
            agent,
            sessions: String::new(),
            session: String::new(),
            site,
            child,
            _directory: directory,
        };
        this.sessions = until("chromedriver to listen", address);
        let mut arguments: Vec<String> = QUIET.iter().map(|&text| text.to_owned()).collect();
        arguments.push(format!("--user-data-dir={}", path.join("profile").display()));
        arguments.push(format!("--window-size={},{}", SIZE.0, SIZE.1));
        if nix::unistd::geteuid().is_root() {
            // Its sandbox is not for root.
            arguments.push("--no-sandbox".to_owned());
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "timeouts": { "script": SCRIPT, "pageLoad": SCRIPT },
            "goog:loggingPrefs": { "browser": "WARNING" },
            "goog:chromeOptions": { "binary": chromium, "args": arguments, "prefs": preferences },
        } } });
        let made = this.post("", &wanted).unwrap();
        this.session = made["sessionId"].as_str().unwrap().to_owned();
        Some(this)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, Refused> {
        let request = self.agent.post(format!("{}{path}", self.sessions));
        answer(request.content_type("application/json").send(body.to_string()).unwrap())
    }

    /// A command of this session.
    fn try_command(&self, path: &str, body: &Value) -> Result<Value, Refused> {
        self.post(&format!("/{}/{path}", self.session), body)
    }

    /// What can be asked of this session.
    #[track_caller]
    fn get(&self, path: &str) -> String {
        let url = format!("{}/{}/{path}", self.sessions, self.session);
        answer(self.agent.get(url).call().unwrap()).unwrap().as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn command(&self, path: &str, body: &Value) -> Value {
        match self.try_command(path, body) {
            Ok(value) => value,
            Err(Refused(why)) => panic!("{path} {body}: {why}"),
        }
    }

    /// A command of the protocol of Chromium's own tools.
    #[track_caller]
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Opens a page of the site and waits until it is there whole.
    #[track_caller]
    pub(crate) fn open(&self, target: &str) {
        self.command("url", &json!({ "url": format!("http://{}{target}", self.site.0) }));
    }

    /// Opens a page that is its own address.
    #[track_caller]
    pub(crate) fn open_inline(&self, html: &str) {
        self.command("url", &json!({ "url": format!("data:text/html,{html}") }));
    }

    /// What a function's body gives in the page.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What a script gives that calls `done`.
    #[track_caller]
    pub(crate) fn run_until_done(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1];\n{script}");
        self.command("execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a function's body gives something in the page as it is, which nobody loads again meanwhile.
    #[track_caller]
    pub(crate) fn wait(&self, condition: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             const test = () => {{ {condition} }};
             const look = () => {{ const found = test(); if (found) {{ watch.disconnect(); done(found); }} }};
             const watch = new MutationObserver(look);
             watch.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
             look();"
        );
        match self.try_command("execute/async", &json!({ "script": script, "args": [] })) {
            Ok(value) => value,
            Err(Refused(why)) => panic!("{condition}: {why}\n{}", self.text("body")),
        }
    }

    /// Does what leads to another page, and waits until that is there whole.
    #[track_caller]
    pub(crate) fn leads(&self, act: impl FnOnce(&Self)) {
        self.run("window.left = true");
        act(self);
        let script = "return !window.left && document.readyState === 'complete'";
        until("the next page", || {
            let there = self.try_command("execute/sync", &json!({ "script": script, "args": [] }));
            // Between two pages there is none to ask.
            there.is_ok_and(|there| there == true).then_some(())
        });
    }

    /// The path and query of the page.
    pub(crate) fn target(&self) -> String {
        self.run("return location.pathname + location.search").as_str().unwrap().to_owned()
    }

    /// The one element that a selector names: of CSS or, with two slashes before it, of XPath.
    #[track_caller]
    fn find(&self, selector: &str) -> String {
        let using = if selector.starts_with("//") { "xpath" } else { "css selector" };
        let found = self.command("elements", &json!({ "using": using, "value": selector }));
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), 1, "{selector} in {}:\n{}", self.target(), self.source());
        found[0][ELEMENT].as_str().unwrap().to_owned()
    }

    pub(crate) fn source(&self) -> String {
        self.get("source")
    }

    /// Clicks as a mouse does: what is covered or not there to be seen cannot be.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        self.command(&format!("element/{}/click", self.find(selector)), &json!({}));
    }

    /// Clicks the button or link with this label, which leads to another page.
    #[track_caller]
    pub(crate) fn choose(&self, label: &str) {
        let selector =
            format!("//main//*[(self::button or self::a) and normalize-space() = '{label}']");
        self.leads(|this| this.click(&selector));
    }

    /// Types into a field after what it holds.
    #[track_caller]
    pub(crate) fn enter(&self, selector: &str, text: &str) {
        self.command(&format!("element/{}/value", self.find(selector)), &json!({ "text": text }));
    }

    /// Types instead of what a field holds.
    #[track_caller]
    pub(crate) fn replace(&self, selector: &str, text: &str) {
        self.command(&format!("element/{}/clear", self.find(selector)), &json!({}));
        self.enter(selector, text);
    }

    /// What can be read of an element.
    #[track_caller]
    pub(crate) fn text(&self, selector: &str) -> String {
        self.get(&format!("element/{}/text", self.find(selector)))
    }

    /// Presses keys, one after the other, wherever the focus is.
    #[track_caller]
    pub(crate) fn press(&self, keys: &str) {
        let stroke = |key: char| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        };
        let strokes: Vec<Value> = keys.chars().flat_map(stroke).collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.command("actions", &json!({ "actions": [keyboard] }));
    }

    /// What the browser has complained of since it was asked last: errors, warnings, breaches of policy.
    #[track_caller]
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", &json!({ "type": "browser" }));
        let text = |entry: &Value| format!("{}: {}", entry["level"], entry["message"]);
        entries.as_array().unwrap().iter().map(text).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn answer(mut reply: ureq::http::Response<ureq::Body>) -> Result<Value, Refused> {
    let text = reply.body_mut().read_to_string().unwrap();
    let mut object: Value = serde_json::from_str(&text).unwrap();
    let value = object["value"].take();
    if reply.status() == 200 { Ok(value) } else { Err(Refused(value["message"].to_string())) }
}

/// Where a program is. `None` where it is not installed, which is said, and fails where `CI` is set.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|place| place.join(name)).find(|file| file.is_file());
    if found.is_none() {
        missing(&format!("{name} is not installed: apt install chromium chromium-driver"));
    }
    found
}

/// Says what is missing for a test, which fails where `CI` is set: there all is to be tested.
#[track_caller]
pub(crate) fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}");
    eprintln!("{what}; what needs it is not tested");
}
