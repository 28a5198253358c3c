//! Downloads: a file as it is, a directory as a tar archive.
//!
//! Invariant: what is sent is in a store or the products directory once all links are followed, whatever the books say.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::range::{self, Range};
use super::tar;
use crate::db::web::downloads;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::{Body, Response};
use crate::web::route::Captures;

/// What has a name of its own in a header's extended value.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~');

const STORES: [&str; 2] = ["/gnu/store", "/nix/store"];

pub(super) fn download(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let missing = || Failure::missing("Could not find the requested build product.");
    let id = captures.id("id").ok_or_else(missing)?;
    let product = downloads::product(context.books()?, id)?.ok_or_else(missing)?;
    let products = &context.shared.config.products_directory;
    let found = open(&product.path, products).map_err(|error| {
        log::debug!(target: "web", "product {id}, {}: {error}", product.path.display());
        missing()
    })?;
    let metadata = found.file.metadata().map_err(|_| missing())?;
    let name = product.path.file_name().unwrap_or(OsStr::new("product")).to_string_lossy();
    if metadata.is_dir() {
        let below = PathBuf::from(name.as_ref());
        let body = Body::Stream(Box::new(move |out| tar::write(&found.path, &below, out)));
        return Ok(answer("application/x-tar", &format!("{name}.tar"), body));
    }
    let total = metadata.len();
    let modified = metadata.mtime_nsec() + metadata.mtime() * 1_000_000_000;
    let tag = format!("\"{:x}-{total:x}-{modified:x}\"", metadata.ino());
    if range::is_known(request, &tag) {
        return Ok(Response::bytes(304, "application/octet-stream", "").with("ETag", tag));
    }
    let (from, length) = match range::wanted(request, total, &tag) {
        Range::All => (0, total),
        Range::Part { from, length } => (from, length),
        Range::Beyond => return Ok(range::beyond(total)),
    };
    let body = Body::File { file: found.file, from, length };
    let response = answer("application/octet-stream", &name, body)
        .with("ETag", tag)
        .with("Accept-Ranges", "bytes");
    let part = length < total;
    Ok(if part { range::partial(response, from, length, total) } else { response })
}

/// Nothing that a build made is shown as if it were ours.
fn answer(kind: &str, name: &str, body: Body) -> Response {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !"\"\\%".contains(c) { c } else { '_' })
        .collect();
    let full = utf8_percent_encode(name, PLAIN);
    let disposition = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{full}");
    Response { status: 200, headers: vec![("Content-Type", kind.to_owned())], body }
        .with("Content-Disposition", disposition)
        .with("X-Content-Type-Options", "nosniff")
        .with("Content-Security-Policy", "sandbox")
}

struct Found {
    file: File,
    /// Where it is, all links followed.
    path: PathBuf,
}

/// Opens first and looks then where that has led, so that nothing can change between.
fn open(path: &Path, products: &Path) -> io::Result<Found> {
    let outside =
        || io::Error::new(io::ErrorKind::PermissionDenied, "it is not where products are");
    // A pipe would hold us up until somebody writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let products = fs::canonicalize(products);
    let stores = STORES.iter().map(fs::canonicalize);
    let places = stores.chain([products]).filter_map(Result::ok);
    // The places themselves are no products.
    let inside = places.into_iter().any(|place| path.starts_with(&place) && path != place);
    let kind = file.metadata()?.file_type();
    if inside && (kind.is_file() || kind.is_dir()) {
        Ok(Found { file, path })
    } else {
        Err(outside())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_to_nothing_outside() {
        let directory = tempfile::tempdir().unwrap();
        let products = directory.path().join("products");
        fs::create_dir_all(products.join("1/out")).unwrap();
        fs::write(products.join("1/out/file"), "inside").unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        fs::create_dir(directory.path().join("products-of-others")).unwrap();
        fs::write(directory.path().join("products-of-others/file"), "outside").unwrap();
        for (link, target) in [
            ("good", "out/file"),
            ("absolute", "/etc/passwd"),
            ("up", "../../secret"),
            ("loop", "loop"),
            ("directory", "/etc"),
        ] {
            symlink(target, products.join("1").join(link)).unwrap();
        }
        nix::unistd::mkfifo(&products.join("1/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, fine) in [
            ("products/1/out/file", true),
            ("products/1/out", true),
            ("products/1/good", true),
            ("products/1/absolute", false),
            ("products/1/up", false),
            ("products/1/loop", false),
            ("products/1/directory", false),
            ("products/1/directory/passwd", false),
            ("products/1/pipe", false),
            ("products/1/../../secret", false),
            ("products/1/none", false),
            ("products", false),
            ("products-of-others/file", false),
            ("secret", false),
        ] {
            let found = open(&directory.path().join(path), &products);
            assert_eq!(found.is_ok(), fine, "{path}");
        }
        assert!(open(Path::new("/etc/passwd"), &products).is_err());
    }

    #[test]
    fn names_are_told_in_both_spellings() {
        let told = |name| {
            let response = answer("a/b", name, Body::Bytes(Vec::new()));
            response.header("content-disposition").unwrap().to_owned()
        };
        assert_eq!(
            told("a-1.0.tar.gz"),
            "attachment; filename=\"a-1.0.tar.gz\"; filename*=UTF-8''a-1.0.tar.gz"
        );
        assert_eq!(
            told("é \"x\"\r\n"),
            "attachment; filename=\"___x___\"; filename*=UTF-8''%C3%A9%20%22x%22%0D%0A"
        );
    }
}
