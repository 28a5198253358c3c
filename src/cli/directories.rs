//! Where everything is, when an option does not say: systemd's environment, else the usual places.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the defaults depend on; gathered once, so that the rules themselves do no I/O.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) root: bool,
    pub(super) variables: Vec<(&'static str, OsString)>,
}

/// The variables that are looked at.
const VARIABLES: &[&str] = &[
    "STATE_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "XDG_STATE_HOME",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "HOME",
];

impl Surroundings {
    /// Of this process.
    pub(super) fn here() -> Self {
        let variable = |name: &&'static str| std::env::var_os(name).map(|value| (*name, value));
        Self {
            root: nix::unistd::geteuid().is_root(),
            variables: VARIABLES.iter().filter_map(variable).collect(),
        }
    }

    /// An absolute path from a variable. systemd's may hold several, separated by colons: the first.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let (_, value) = self.variables.iter().find(|(known, _)| *known == name)?;
        let first = value.as_encoded_bytes().split(|&byte| byte == b':').next()?;
        let path = PathBuf::from(String::from_utf8(first.to_vec()).ok()?);
        path.is_absolute().then_some(path)
    }

    fn home(&self, below: &str) -> PathBuf {
        self.path("HOME").unwrap_or_else(|| "/".into()).join(below)
    }

    fn state(&self) -> PathBuf {
        self.path("STATE_DIRECTORY").unwrap_or_else(|| {
            if self.root {
                return "/var/lib/gorget".into();
            }
            self.path("XDG_STATE_HOME").unwrap_or_else(|| self.home(".local/state")).join("gorget")
        })
    }

    fn cache(&self) -> PathBuf {
        self.path("CACHE_DIRECTORY").unwrap_or_else(|| {
            if self.root {
                return "/var/cache/gorget".into();
            }
            self.path("XDG_CACHE_HOME").unwrap_or_else(|| self.home(".cache")).join("gorget")
        })
    }

    /// `None` for a user without a runtime directory: then it is below the state.
    fn run(&self) -> Option<PathBuf> {
        self.path("RUNTIME_DIRECTORY").or_else(|| {
            if self.root {
                return Some("/run/gorget".into());
            }
            Some(self.path("XDG_RUNTIME_DIR")?.join("gorget"))
        })
    }
}

/// What options say of places; made absolute by the caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) state: Option<PathBuf>,
    pub(super) run: Option<PathBuf>,
    pub(super) cache: Option<PathBuf>,
    pub(super) log: Option<PathBuf>,
    pub(super) database: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directories {
    pub(super) state: PathBuf,
    pub(super) run: PathBuf,
    pub(super) cache: PathBuf,
    pub(super) log: PathBuf,
    pub(super) database: PathBuf,
    pub(super) socket: PathBuf,
}

/// `--state-directory` puts everything below it that no other option places.
pub(super) fn choose(told: Told, here: &Surroundings) -> Directories {
    let (state, run, cache, log) = match told.state {
        Some(state) => (state.clone(), state.join("run"), state.join("cache"), state.join("log")),
        None => {
            let state = here.state();
            let run = here.run().unwrap_or_else(|| state.join("run"));
            let log = here.path("LOGS_DIRECTORY").unwrap_or_else(|| state.join("log"));
            (state, run, here.cache(), log)
        }
    };
    let run = told.run.unwrap_or(run);
    Directories {
        database: told.database.unwrap_or_else(|| state.join("gorget.db")),
        socket: told.socket.unwrap_or_else(|| run.join("bridge")),
        cache: told.cache.unwrap_or(cache),
        log: told.log.unwrap_or(log),
        state,
        run,
    }
}

/// The sockets where a client finds the daemon, most likely first: the user's own daemon, then the system's.
pub(super) fn sockets(state: Option<&Path>, here: &Surroundings) -> Vec<PathBuf> {
    if let Some(state) = state {
        return vec![state.join("run/bridge")];
    }
    let mut sockets = vec![choose(Told::default(), here).socket];
    if !here.root {
        sockets.push("/run/gorget/bridge".into());
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(root: bool, variables: &[(&'static str, &str)]) -> Surroundings {
        let variables = variables.iter().map(|(name, value)| (*name, value.into())).collect();
        Surroundings { root, variables }
    }

    fn shown(told: Told, here: &Surroundings) -> [String; 6] {
        let Directories { state, run, cache, log, database, socket } = choose(told, here);
        [state, run, cache, log, database, socket].map(|path| path.display().to_string())
    }

    #[test]
    fn root_and_users_have_their_usual_places() {
        let places = ["/var/lib/gorget", "/run/gorget", "/var/cache/gorget", "/var/lib/gorget/log"];
        let all = shown(Told::default(), &here(true, &[("HOME", "/root")]));
        assert_eq!(all[..4], places);
        assert_eq!(all[4..], ["/var/lib/gorget/gorget.db", "/run/gorget/bridge"]);
        let user = here(false, &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        let places = ["/h/.local/state/gorget", "/run/user/1/gorget", "/h/.cache/gorget"];
        assert_eq!(shown(Told::default(), &user)[..3], places);
        let bare =
            here(false, &[("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("XDG_CACHE_HOME", "rel")]);
        let places = ["/s/gorget", "/s/gorget/run", "/h/.cache/gorget"];
        assert_eq!(shown(Told::default(), &bare)[..3], places);
    }

    #[test]
    fn systemd_tells_and_options_tell_louder() {
        let systemd = here(
            true,
            &[
                ("STATE_DIRECTORY", "/s:/t"),
                ("RUNTIME_DIRECTORY", "/r"),
                ("CACHE_DIRECTORY", "/c"),
                ("LOGS_DIRECTORY", "/l"),
            ],
        );
        let all = shown(Told::default(), &systemd);
        assert_eq!(all, ["/s", "/r", "/c", "/l", "/s/gorget.db", "/r/bridge"]);
        let state = Told { state: Some("/d".into()), ..Told::default() };
        let all = shown(state.clone(), &systemd);
        assert_eq!(all, ["/d", "/d/run", "/d/cache", "/d/log", "/d/gorget.db", "/d/run/bridge"]);
        let told = Told { run: Some("/x".into()), database: Some("/y.db".into()), ..state };
        let all = shown(told, &systemd);
        assert_eq!(all, ["/d", "/x", "/d/cache", "/d/log", "/y.db", "/x/bridge"]);
    }

    #[test]
    fn clients_look_for_their_own_daemon_first() {
        let user = here(false, &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        let paths = ["/run/user/1/gorget/bridge", "/run/gorget/bridge"].map(PathBuf::from);
        assert_eq!(sockets(None, &user), paths);
        assert_eq!(sockets(Some(Path::new("/d")), &user), [PathBuf::from("/d/run/bridge")]);
        assert_eq!(sockets(None, &here(true, &[])), [PathBuf::from("/run/gorget/bridge")]);
    }
}
