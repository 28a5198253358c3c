//! A real nix-daemon at the other end, over the pipes of one process.
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::proto::store::{Dialect, Options, Session, Step, Verdict};

struct Pipes {
    input: ChildStdin,
    output: ChildStdout,
}

impl Read for Pipes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

fn serve(place: &std::path::Path) -> (Child, Pipes) {
    let mut command = Command::new("nix-daemon");
    for name in ["STORE", "STATE", "LOCALSTATE", "LOG", "CONF"] {
        command.env(format!("NIX_{name}_DIR"), place.join(name));
    }
    let mut child = command
        .arg("--stdio")
        .env("NIX_CONFIG", "sandbox = false\nsubstituters =\nbuild-users-group =")
        .env_remove("NIX_REMOTE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nix-daemon must be installed: apt install nix-bin");
    let pipes = Pipes { input: child.stdin.take().unwrap(), output: child.stdout.take().unwrap() };
    (child, pipes)
}

#[test]
fn every_operation_is_understood_by_nix() {
    let place = tempfile::tempdir().unwrap();
    let (mut child, pipes) = serve(place.path());
    let mut session = Session::open(pipes, Dialect::Nix).unwrap();
    session
        .set_options(&Options { timeout: 60, max_silent_time: 60, ..Options::default() })
        .unwrap();
    let none: [&str; 0] = [];
    let first = session.add_text("first", b"hello", &none).unwrap();
    let second = session.add_text("second", first.as_bytes(), &[&first]).unwrap();
    let info = session.path_info(&second).unwrap().unwrap();
    assert_eq!((info.references, info.deriver), (vec![first.clone()], None));
    assert!(info.size > 100 && info.registered > 1_000_000_000 && info.hash.len() == 64);
    let nothing = format!("{}/{}-nothing", place.path().join("STORE").display(), "0".repeat(32));
    assert_eq!(session.path_info(&nothing).unwrap(), None);
    assert_eq!(session.valid(&[&first, &nothing]).unwrap(), [first.as_str()]);
    session.ensure_path(&first).unwrap();
    session.ensure_path(&nothing).unwrap_err();
    session.add_temporary_root(&second).unwrap();

    // A derivation whose output its own content names, so that no hash has to be computed here.
    let sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"; // Of `hello` and a newline.
    let store = place.path().join("STORE");
    let out = {
        let text = |path: &str| {
            format!(
                "Derive([(\"out\",\"{path}\",\"sha256\",\"{sum}\")],[],[],\"{}\",\"/bin/sh\",\
                 [\"-c\",\"echo hello > $out\"],[(\"out\",\"{path}\")])",
                std::env::consts::ARCH.to_owned() + "-linux"
            )
        };
        // The daemon says which path it should be.
        let wrong = format!("{}/{}-x", store.display(), "0".repeat(32));
        let refused = session.add_text("x.drv", text(&wrong).as_bytes(), &none).unwrap_err();
        let refused = refused.to_string();
        let right = refused.rsplit('\'').nth(1).unwrap().to_owned();
        let derivation = session.add_text("x.drv", text(&right).as_bytes(), &none).unwrap();
        assert_eq!(session.outputs(&derivation).unwrap()["out"], right);
        session.build(&derivation).unwrap();
        loop {
            if let Step::Over(verdict) = session.step().unwrap() {
                assert_eq!(verdict, Verdict::Done);
                break;
            }
        }
        right
    };
    assert!(session.is_valid(&out).unwrap());
    drop(session);
    child.wait().unwrap();
}
