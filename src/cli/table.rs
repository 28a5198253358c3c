//! Every command and every option, once: the parser, `--help`, the man pages and the completions are loops over
//! this table.
//!
//! Texts may hold `code` between backticks, which man pages print bold, and blank lines between paragraphs.

/// What kind of command it is: how it is listed, and whether it can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A program that stays.
    Server,
    /// Works on files by itself.
    Tool,
    /// Asks the running daemon.
    Client,
    /// For those who work on Gorget; not listed.
    Hidden,
}

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Each way to write its arguments, without the options.
    pub(crate) operands: &'static [&'static str],
    pub(crate) summary: &'static str,
    /// Paragraphs that say what the summary does not.
    pub(crate) details: &'static str,
    pub(crate) groups: &'static [Group],
}

/// Options that belong together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) flags: &'static [Flag],
}

/// An option.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    /// The name of its value, if it takes one.
    pub(crate) value: Option<&'static str>,
    pub(crate) default: Option<&'static str>,
    pub(crate) repeatable: bool,
    pub(crate) help: &'static str,
}

impl Command {
    /// All its options, those of every command included.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.groups.iter().chain([&COMMON]).flat_map(|group| group.flags)
    }
}

impl Flag {
    const fn switch(name: &'static str, help: &'static str) -> Self {
        let (short, value, default) = (None, None, None);
        Self { name, short, value, default, repeatable: false, help }
    }

    const fn value(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { value: Some(value), ..Self::switch(name, help) }
    }

    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }
}

/// Finds a command by its name.
pub(crate) fn command(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Options of every command.
pub(crate) const COMMON: Group = Group {
    title: "Common options",
    flags: &[
        Flag::switch("help", "Print this help.").short('h'),
        Flag::switch("version", "Print the version.").short('V'),
    ],
};

const STATE_DIRECTORY: Flag = Flag::value(
    "state-directory",
    "DIR",
    "Keep everything below DIR, unless another option says otherwise.",
);
const GUIX: Flag = Flag::value(
    "guix",
    "COMMAND",
    "Run Guix, and files in Scheme, with this command; the latter with guile where it is missing.",
)
.default("guix");
const PARAMETERS: Flag =
    Flag::value("parameters", "FILE", "Read parameters from FILE, see gorget-specification(5).")
        .short('P');

/// Options that tell where the daemon is; they are understood before the command, too.
pub(crate) const CONNECTION: Group = Group {
    title: "Finding the daemon",
    flags: &[
        Flag::value("socket", "FILE", "Talk to the daemon on this socket."),
        Flag::value("state-directory", "DIR", "Talk to the daemon that keeps its state in DIR."),
    ],
};

/// What `--builder` opens.
pub(crate) const BACKENDS: &[&str] = &["auto", "process", "guix", "nix"];

/// How client commands print.
pub(crate) const OUTPUT: Group = Group {
    title: "Output",
    flags: &[Flag::switch("json", "Print the daemon's JSON objects, one a line, for programs.")],
};

/// The groups of a client command without options of its own.
const CLIENT: &[Group] = &[OUTPUT, CONNECTION];

const LIMIT: Flag = Flag::value("limit", "N", "Show at most N, from 1 to 10000.").default("100");
const EVALUATION: Flag = Flag::value("evaluation", "ID", "Of this evaluation.");

/// A client command without options of its own.
const fn client(
    name: &'static str,
    operands: &'static [&'static str],
    summary: &'static str,
    details: &'static str,
) -> Command {
    Command { name, kind: Kind::Client, operands, summary, details, groups: CLIENT }
}

/// All commands, in the order in which they are listed.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        name: "register",
        kind: Kind::Server,
        operands: &[""],
        summary: "Run the daemon.",
        details: "Watches the channels of all jobsets, evaluates them, builds their jobs and keeps the results. \
            It runs in the foreground and logs to standard error; `SIGTERM` and `SIGINT` stop it in order, \
            `SIGHUP` makes it read the specification files again.\n\n\
            The exit status is 0 after an orderly stop, 1 when it could not start (or, with `--one-shot`, when \
            anything ended other than succeeded), 2 on a usage error, and 70 when a part of it broke: the service \
            manager should then start it again.",
        groups: &[
            Group {
                title: "What to do",
                flags: &[
                    Flag::value(
                        "specifications",
                        "FILE",
                        "Register the jobsets that FILE (JSON) describes. A jobset that is no longer in a file stays.",
                    )
                    .short('S')
                    .repeatable(),
                    Flag::switch(
                        "one-shot",
                        "Evaluate the active jobsets of the specification files once, build their jobs, and exit: \
                         with status 1 if a fetch, an evaluation or a build ended other than succeeded, or if told to stop \
                         before that. Whether builds or evaluations are paused makes no difference.",
                    ),
                    Flag::value(
                        "interval",
                        "SECONDS",
                        "Poll each jobset whose specification has no period of its own this often.",
                    )
                    .short('I')
                    .default("300"),
                    PARAMETERS,
                ],
            },
            Group {
                title: "Files and directories",
                flags: &[
                    STATE_DIRECTORY,
                    Flag::value("database", "FILE", "Keep the database in FILE (SQLite).").short('D'),
                    Flag::value("run-directory", "DIR", "Keep sockets in DIR."),
                    Flag::value("cache-directory", "DIR", "Keep mirrors and checkouts in DIR."),
                    Flag::value("log-directory", "DIR", "Keep logs of builds and evaluations in DIR."),
                    Flag::value("socket", "FILE", "Listen for clients on FILE."),
                    Flag::value("socket-group", "GROUP", "Let members of GROUP use the socket."),
                ],
            },
            Group {
                title: "Fetching and evaluating",
                flags: &[
                    Flag::value("max-fetches", "N", "Fetch from at most N repositories at once.").default("4"),
                    Flag::value(
                        "fetch-timeout",
                        "SECONDS",
                        "Give up a fetch after this long without a byte, or 20 times that in all.",
                    )
                    .default("60"),
                    Flag::value("max-evaluations", "N", "Run at most N evaluations at once.")
                        .default("the number of CPUs, at most 4"),
                    Flag::value("threads", "N", "Cuirass's spelling of --max-evaluations."),
                    Flag::value(
                        "evaluation-memory",
                        "SIZE",
                        "Limit the address space of each process of an evaluation to SIZE.",
                    )
                    .default("off"),
                    GUIX,
                ],
            },
            Group {
                title: "Building",
                flags: &[
                    Flag::value("max-builds", "N", "Run at most N builds at once.")
                        .default("the number of CPUs"),
                    Flag::value(
                        "builder",
                        "BACKEND",
                        "Open these backends: process, guix (and process), nix (and process), or auto (all). \
                         Builds whose backend is closed or whose daemon does not answer wait, and say so.",
                    )
                    .default("auto"),
                    Flag::switch("build-remote", "Leave builds of derivations to remote-server."),
                    Flag::switch("fallback", "Build what no substitute can be fetched for."),
                    Flag::switch("use-substitutes", "Accepted for Cuirass's sake, and ignored."),
                    Flag::value(
                        "job-user",
                        "USER",
                        "Run evaluators and builds as USER. Without it, pushed code can do whatever the daemon can.",
                    ),
                    Flag::value("max-log-size", "SIZE", "End a build or evaluation that logs more than SIZE.")
                        .default("1GiB"),
                    Flag::value(
                        "minimum-disk-space",
                        "SIZE",
                        "Start no build and no evaluation while less than SIZE is free on a disk that holds the database, state, \
                         cache or logs; 0 turns this off.",
                    )
                    .default("1GiB"),
                ],
            },
            Group {
                title: "Keeping",
                flags: &[
                    Flag::value("ttl", "DURATION", "Keep products for DURATION.").default("30d"),
                    Flag::value("log-expiry", "DURATION", "Keep logs for DURATION.").default("6m"),
                    Flag::value("build-expiry", "DURATION", "Cancel builds that have waited longer than DURATION.")
                        .default("off"),
                    Flag::value("history-expiry", "DURATION", "Forget evaluations that are older than DURATION.")
                        .default("off"),
                ],
            },
            Group {
                title: "Serving",
                flags: &[
                    Flag::value("max-connections", "N", "Serve at most N clients of the socket at once.")
                        .default("64"),
                    Flag::value("web", "HOST:PORT", "Serve the web interface from this process, too."),
                ],
            },
        ],
    },
    Command {
        name: "evaluate",
        kind: Kind::Tool,
        operands: &["-S FILE [NAME]"],
        summary: "Evaluate one specification now and print its jobs.",
        details: "Fetches the channels, runs the evaluator and prints the jobs as JSON lines. Nothing is recorded, \
            and no daemon need run. NAME tells which jobset of the file, if it describes several.",
        groups: &[Group {
            title: "Options",
            flags: &[
                Flag::value("specifications", "FILE", "Read the specification from FILE.").short('S'),
                Flag::value(
                    "fetch-timeout",
                    "SECONDS",
                    "Give up a fetch after this long without a byte, or 20 times that in all.",
                )
                .default("60"),
                GUIX,
            ],
        }],
    },
    Command {
        name: "check",
        kind: Kind::Tool,
        operands: &["FILE..."],
        summary: "Say what is wrong with specification files.",
        details: "Reads each specification file and prints whether it is good, or what is wrong with which field \
            on which line. The exit status is 1 if anything is wrong.",
        groups: &[Group {
            title: "Options",
            flags: &[
                Flag::value("specifications", "FILE", "Check this specification file, too.")
                    .short('S')
                    .repeatable(),
                Flag::value("parameters", "FILE", "Check this parameters file.").short('P'),
                GUIX,
            ],
        }],
    },
    client("status", &[""], "Show what the daemon is doing.", ""),
    client("jobsets", &[""], "List the jobsets.", ""),
    Command {
        name: "builds",
        kind: Kind::Client,
        operands: &[""],
        summary: "List builds, newest first.",
        details: "Builds are selected by the jobs that point to them, so that a build is listed for each evaluation \
            that wants it. A build that waits says why.",
        groups: &[
            Group {
                title: "Selecting",
                flags: &[
                    Flag::value("jobset", "NAME", "Of this jobset."),
                    EVALUATION,
                    Flag::value(
                        "status",
                        "WORD",
                        "Of this status: submitted, scheduled, started, succeeded, failed, failed-dependency, \
                         aborted or canceled.",
                    ),
                    LIMIT,
                ],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    Command {
        name: "evaluations",
        kind: Kind::Client,
        operands: &["[NAME]"],
        summary: "List evaluations, newest first.",
        details: "With NAME, those of this jobset.",
        groups: &[Group { title: "Selecting", flags: &[LIMIT] }, OUTPUT, CONNECTION],
    },
    Command {
        name: "queue",
        kind: Kind::Client,
        operands: &[""],
        summary: "List waiting builds in the order in which they will start.",
        details: "",
        groups: &[Group { title: "Selecting", flags: &[LIMIT] }, OUTPUT, CONNECTION],
    },
    client("workers", &[""], "List the remote workers.", ""),
    client(
        "trigger",
        &["NAME"],
        "Look at a jobset's channels now.",
        "An evaluation follows if anything changed. At most 8 triggers of a jobset within 300 seconds are taken.",
    ),
    Command {
        name: "add",
        kind: Kind::Client,
        operands: &["FILE"],
        summary: "Register the jobsets of a specification file, or replace them.",
        details: "All of the file is registered, or nothing: what is too long for one request, of 64 KiB, is refused. One in \
            Scheme is run here, not by the daemon.",
        groups: &[Group { title: "Options", flags: &[GUIX] }, OUTPUT, CONNECTION],
    },
    client("activate", &["NAME"], "Watch a jobset's channels.", ""),
    client("deactivate", &["NAME"], "Stop watching a jobset's channels.", ""),
    client(
        "delete",
        &["NAME"],
        "Delete a jobset.",
        "Its builds that no other jobset wants are canceled; what it left is removed in time.",
    ),
    Command {
        name: "restart",
        kind: Kind::Client,
        operands: &["BUILD", "--evaluation ID [--all]"],
        summary: "Build again.",
        details: "A build is restarted with its unfinished dependencies, and its dependents that failed for its sake. \
            Of an evaluation, what failed, was aborted or canceled is built again.",
        groups: &[
            Group {
                title: "Options",
                flags: &[
                    Flag::value("evaluation", "ID", "Restart the builds of this evaluation."),
                    Flag::switch("all", "With --evaluation, build everything again."),
                ],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    Command {
        name: "cancel",
        kind: Kind::Client,
        operands: &["BUILD", "--evaluation ID"],
        summary: "Cancel a build, or an evaluation and its builds.",
        details: "What runs is stopped; dependents are canceled as well. Cancelling an evaluation spares builds that \
            another one wants.",
        groups: &[
            Group {
                title: "Options",
                flags: &[Flag::value("evaluation", "ID", "Cancel this evaluation.")],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    client("retry", &["EVALUATION"], "Evaluate the same commits again, now.", ""),
    client(
        "prioritize",
        &["BUILD PRIORITY"],
        "Change the place of a waiting build in the queue.",
        "PRIORITY is a number from 0 (first) to 99 (last).",
    ),
    client(
        "pause",
        &["[builds|evaluations]", "worker NAME"],
        "Start no more builds or evaluations, or pause a worker.",
        "What runs goes on. It lasts until `resume`, also when the daemon is started again; that of a worker until the worker is.",
    ),
    client(
        "resume",
        &["[builds|evaluations]", "worker NAME"],
        "Start builds or evaluations again, or a worker.",
        "A worker is paused, too, when ten builds in a row were aborted on it.",
    ),
    Command {
        name: "log",
        kind: Kind::Client,
        operands: &["BUILD", "--evaluation ID"],
        summary: "Print the log of a build or an evaluation.",
        details: "",
        groups: &[
            Group {
                title: "Options",
                flags: &[
                    Flag::value("evaluation", "ID", "Print the log of this evaluation."),
                    Flag::switch("follow", "Go on until it ends.").short('f'),
                ],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    client(
        "watch",
        &["[NAME]"],
        "Show evaluations and builds as they run.",
        "Progress bars on a terminal, plain lines otherwise. With NAME, of this jobset.",
    ),
    Command {
        name: "wait",
        kind: Kind::Client,
        operands: &["BUILD", "--evaluation ID"],
        summary: "Wait for a build, or an evaluation and all its builds.",
        details: "The exit status is 0 only if all succeeded.",
        groups: &[
            Group {
                title: "Options",
                flags: &[
                    Flag::value("evaluation", "ID", "Wait for this evaluation and its builds."),
                    Flag::value("timeout", "DURATION", "Give up after DURATION, with exit status 1."),
                ],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    client(
        "reload",
        &[""],
        "Make the daemon read its specification files again.",
        "When one of them is bad, everything stays as it was, and the error is printed.",
    ),
    client("backup", &["FILE"], "Copy the database into a new file.", "The daemon writes it, and goes on meanwhile: so the directory must be one where the daemon may write. A user other \
         than root and the daemon's own can name files below its state directory only. FILE must not exist; it holds what \
         the database holds, secrets of specifications included."),
    client("check-database", &[""], "Look for damage in the database.", ""),
    Command {
        name: "token",
        kind: Kind::Client,
        operands: &["add NAME ROLE", "list", "revoke NAME"],
        summary: "Manage the tokens of the web interface.",
        details: "The secret of a new token is printed once and kept nowhere. ROLE is one of `trigger`, `viewer`, \
            `operator`, `editor` and `admin`.",
        groups: &[
            Group {
                title: "With add",
                flags: &[
                    Flag::value("jobset", "NAME", "Limit the token to this jobset."),
                    Flag::value("expires", "DURATION", "Let the token expire after DURATION."),
                ],
            },
            OUTPUT,
            CONNECTION,
        ],
    },
    Command {
        name: "web",
        kind: Kind::Server,
        operands: &[""],
        summary: "Serve the web interface.",
        details: "Shows jobsets, evaluations, builds and their logs to people and to programs, and lets those who have a token \
            change them. It runs in the foreground and logs to standard error.\n\n\
            The exit status is 0 after an orderly stop, 1 when it could not start or a part of it broke, and 2 on a \
            usage error.",
        groups: &[Group {
            title: "Options",
            flags: &[
                Flag::value("port", "PORT", "Listen on this port.").short('p').default("8080"),
                Flag::value("listen", "HOST", "Listen on this address; a proxy in front of it is what others should reach.").default("127.0.0.1"),
                Flag::value("database", "FILE", "Read the database FILE.").short('D'),
                STATE_DIRECTORY,
                Flag::value("socket", "FILE", "Talk to the daemon on this socket."),
                PARAMETERS,
            ],
        }],
    },
    Command {
        name: "remote-server",
        kind: Kind::Server,
        operands: &[""],
        summary: "Serve remote workers.",
        details: "Takes connections of remote workers, those of Cuirass included, and hands them what the daemon, started with \
            `--build-remote`, gives them to build. It decides nothing itself and keeps nothing but logs: it may be stopped and \
            started at any time, and workers go on with what they build meanwhile.\n\n\
            It runs in the foreground and logs to standard error; `SIGTERM` and `SIGINT` stop it in order. The exit status is \
            0 after an orderly stop, 1 when it could not start, 2 on a usage error, and 70 when a part of it broke.",
        groups: &[
            Group {
                title: "Serving workers",
                flags: &[
                    Flag::value("backend-port", "PORT", "Listen for workers on this port.").short('b').default("5555"),
                    Flag::value("log-port", "PORT", "Receive logs on this port.").short('l').default("5556"),
                    Flag::value("user", "USER", "Run as USER, once keys are read and sockets are there.").short('u'),
                    Flag::value("max-log-size", "SIZE", "Drop what a build logs beyond SIZE, compressed.").default("1GiB"),
                    Flag::switch("no-announce", "Do not announce the server on the local network, by mDNS."),
                ],
            },
            Group {
                title: "Publishing",
                flags: &[
                    Flag::value("publish-port", "PORT", "Publish the store for workers on this port, by `guix publish`.")
                        .short('p')
                        .default("5557"),
                    Flag::switch(
                        "no-publish",
                        "Publish nothing: workers get derivations and inputs from elsewhere, or share the store.",
                    )
                    .short('s'),
                    Flag::value("public-key", "FILE", "Publish with this public key.")
                        .default("/etc/guix/signing-key.pub"),
                    Flag::value("private-key", "FILE", "Sign with this private key.")
                        .default("/etc/guix/signing-key.sec"),
                    Flag::value("guix", "COMMAND", "Run Guix with this command.").default("guix"),
                ],
            },
            Group {
                title: "Files and directories",
                flags: &[
                    STATE_DIRECTORY,
                    Flag::value("run-directory", "DIR", "Keep sockets in DIR."),
                    Flag::value("socket-group", "GROUP", "Let members of GROUP use the socket."),
                    Flag::value("cache", "DIR", "Keep logs in DIR, where the daemon links them from.").short('c'),
                    Flag::value("log-expiry", "DURATION", "Keep logs in DIR for DURATION.").default("6m"),
                ],
            },
            Group {
                title: "Accepted for Cuirass's sake, and ignored",
                flags: &[
                    Flag::value("database", "FILE", "There is no database here.").short('D'),
                    PARAMETERS,
                    Flag::value("ttl", "DURATION", "The daemon keeps results, see its --ttl.").short('t'),
                    Flag::value(
                        "trigger-substitute-url",
                        "URL",
                        "The daemon fetches results, the server does not.",
                    )
                    .short('T'),
                ],
            },
        ],
    },
    Command {
        name: "remote-worker",
        kind: Kind::Server,
        operands: &[""],
        summary: "Build for a remote server.",
        details: "Asks a server, of Gorget or of Cuirass, for work, has the store daemon of this machine do it, sends the log \
            while it builds, and serves what was built with `guix publish`. It runs in the foreground and logs to standard \
            error.\n\n\
            The exit status is 0 after an orderly stop, 1 when it could not start, 2 on a usage error, and 70 when a part of \
            it broke.",
        groups: &[
            Group {
                title: "Work",
                flags: &[
                    Flag::value("workers", "N", "Run N builds at once, which share the processors.").short('w').default("1"),
                    Flag::value("server", "ADDRESS:PORT", "Work for this server, instead of the first that announces itself on the network.").short('s'),
                    Flag::value("systems", "SYSTEMS", "Build for these systems, separated by commas, instead of this machine's.").short('S'),
                    Flag::value("minimum-disk-space", "GIB", "Ask for no work while less is free in the store, or in TMPDIR; a unit such as M may follow.").default("5"),
                    Flag::value("maximum-load", "LOAD", "Ask for no work while the load average of the last minute is above LOAD.").default("off"),
                    Flag::value("substitute-urls", "URLS", "Fetch substitutes from the server first, then from these URLs, separated by blanks.").default("https://bordeaux.guix.gnu.org https://ci.guix.gnu.org for a store of Guix, none for one of Nix"),
                ],
            },
            Group {
                title: "Publishing what was built",
                flags: &[
                    Flag::value("publish-port", "PORT", "Publish substitutes on this port.").short('p').default("5558"),
                    Flag::switch("no-publish", "Start no guix publish: something else serves the store on that port, or the server has the same store."),
                    Flag::value("public-key", "FILE", "Publish with this public key.").default("/etc/guix/signing-key.pub"),
                    Flag::value("private-key", "FILE", "Sign with this private key.").default("/etc/guix/signing-key.sec"),
                    Flag::value("guix", "COMMAND", "Run Guix with this command.").default("guix"),
                ],
            },
            Group {
                title: "The process",
                flags: &[
                    Flag::value("user", "USER", "Run as USER, once the keys are read.").short('u'),
                    STATE_DIRECTORY,
                    Flag::value("run-directory", "DIR", "Accepted, and ignored: a worker has no sockets."),
                    Flag::value("ttl", "DURATION", "Accepted for Cuirass's sake, and ignored.").short('t'),
                    Flag::value("database", "FILE", "Accepted for Cuirass's sake, and ignored.").short('D'),
                ],
            },
        ],
    },
    Command {
        name: "help",
        kind: Kind::Tool,
        operands: &["[COMMAND]"],
        summary: "Print help, on a command if one is given.",
        details: "",
        groups: &[],
    },
    Command {
        name: "documentation",
        kind: Kind::Hidden,
        operands: &["DIR"],
        summary: "Write the man pages to DIR/man and the shell completions to DIR/contrib/completions.",
        details: "",
        groups: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_texts_are_sentences() {
        for (index, command) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[..index].iter().all(|other| other.name != command.name));
            assert!(
                command.summary.ends_with('.') && !command.operands.is_empty(),
                "{}",
                command.name
            );
            let flags: Vec<_> = command.flags().collect();
            for (index, flag) in flags.iter().enumerate() {
                let which = format!("{} --{}", command.name, flag.name);
                let clash = |other: &&&Flag| {
                    other.name == flag.name || (flag.short.is_some() && other.short == flag.short)
                };
                assert!(!flags[..index].iter().any(|other| clash(&other)), "{which}");
                assert!(
                    flag.help.ends_with('.') && flag.help.starts_with(char::is_uppercase),
                    "{which}"
                );
                assert!(flag.default.is_none() || flag.value.is_some(), "{which}");
            }
        }
    }

    #[test]
    fn everyone_who_asks_the_daemon_can_be_told_where_it_is() {
        for command in COMMANDS.iter().filter(|command| command.kind == Kind::Client) {
            for name in ["socket", "state-directory", "json"] {
                assert!(command.flags().any(|flag| flag.name == name), "{}", command.name);
            }
        }
    }
}
