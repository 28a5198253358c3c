//! The child's life: one request from standard input, progress and one answer to standard output.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::Error;
use super::session::Session;
use super::url::Url;
use super::wire::{self, Request};
use crate::actor::panic_message;

/// Longest request: thousands of references.
const REQUEST: u64 = 4 << 20;

/// Most of a mirror's packs that is mapped at once: the pages count as ours where memory is limited.
const MAPPED: usize = 512 << 20;

/// The child's side: reads its request from standard input, prints progress and the answer. Called by the keeper.
pub(crate) fn child_main() -> i32 {
    match serve() {
        Ok(()) => 0,
        // Whoever should hear of it has gone.
        Err(_) => 1,
    }
}

fn serve() -> io::Result<()> {
    // Jobs run as another user read the checkouts; who may get so far, the directories above decide.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let mut text = Vec::new();
    io::stdin().lock().take(REQUEST).read_to_end(&mut text)?;
    // A descriptor of its own, unbuffered: each byte must go out when it is written.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let answer = match wire::decode_request(&text) {
        Ok(request) => {
            let authorities = set_options(&request);
            let session = Session::new(request, Box::new(output.try_clone()?), authorities);
            catch_unwind(AssertUnwindSafe(|| session.answer()))
                .unwrap_or_else(|payload| Err(Error(panic_message(payload.as_ref()))))
        }
        Err(error) => Err(Error(format!("bad request: {error}"))),
    };
    (&output).write_all(&wire::encode_answer(answer)?)
}

/// The variable that tells OpenSSL whom to trust.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// The authorities that OpenSSL was not told of at once, because it reads all of them when libgit2 starts: that takes
/// several times as long as a look that needs none.
pub(super) struct Authorities {
    /// As [`AUTHORITIES`] was.
    variable: Option<OsString>,
}

/// Sets libgit2's process-wide options.
fn set_options(request: &Request) -> Option<Authorities> {
    let timeout = milliseconds(request.silence);
    let secure = Url::parse(&request.look.url).is_ok_and(|url| url.is_http());
    let variable = env::var_os(AUTHORITIES);
    // SAFETY: these write globals of libc and libgit2 without synchronisation. This process has one thread, and has
    // not used libgit2 before.
    unsafe {
        if !secure {
            env::set_var(AUTHORITIES, "/dev/null");
        }
        // A local repository may belong to another user. What fails here shows itself in what is done next.
        let _ = git2::opts::set_verify_owner_validation(false);
        // The parent times the silence; these give the better message where they are first.
        let _ = git2::opts::set_server_connect_timeout_in_milliseconds(timeout / 2);
        let _ = git2::opts::set_server_timeout_in_milliseconds(timeout);
        let _ = git2::opts::set_mwindow_mapped_limit(MAPPED);
        if secure && let Some(file) = own_authorities() {
            let _ = git2::opts::set_ssl_cert_file(file);
        }
    }
    (!secure).then_some(Authorities { variable })
}

impl Authorities {
    /// Makes good for what was left out, before the first connection that could need it.
    pub(super) fn load(self) {
        let usual = self.variable.clone();
        // SAFETY: as above: there is still one thread, and no connection is open.
        unsafe {
            match self.variable {
                Some(file) => env::set_var(AUTHORITIES, file),
                None => env::remove_var(AUTHORITIES),
            }
            // Without one a directory of certificates may do; what does not, fails when it connects.
            let usual = usual.or_else(|| Some(openssl_probe::probe().cert_file?.into()));
            for file in usual.into_iter().chain(own_authorities()) {
                let _ = git2::opts::set_ssl_cert_file(file);
            }
        }
    }
}

/// Git's own variable.
fn own_authorities() -> Option<OsString> {
    env::var_os("GIT_SSL_CAINFO").filter(|file| !file.is_empty())
}

/// At least one, as zero means for ever.
fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(2)
}
