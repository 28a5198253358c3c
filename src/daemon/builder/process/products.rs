//! What a process build leaves: its `$out`, and copies of the files that its globs match.
//!
//! Invariant: nothing from outside the build's own directories becomes a product: symbolic links are followed only
//! to files within the working directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use sha2::{Digest, Sha256};

use crate::model::build::Product;
use crate::sys::file;

/// Bytes copied at a time: enough to make a system call's cost vanish.
const CHUNK: usize = 256 << 10;

/// Reads the globs, which are relative to the working directory; `*` does not match a slash.
pub(super) fn globs(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
        set.add(GlobBuilder::new(pattern).literal_separator(true).build()?);
    }
    set.build()
}

/// The product at `out`, if there is a file or directory.
pub(super) fn of_out(out: &Path) -> io::Result<Option<Product>> {
    let metadata = match fs::symlink_metadata(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let (kind, size, sha256) = if metadata.is_file() {
        ("file", metadata.len(), Some(hash(&mut open(out)?, &mut io::sink())?.1))
    } else if metadata.is_dir() {
        ("directory", tree_size(out)?, None)
    } else {
        return Ok(None);
    };
    Ok(Some(Product { kind: kind.to_owned(), path: out.to_owned(), size, sha256 }))
}

/// Copies the files in `work` that `globs` match, or that lie in a directory they match, to `target`; in the order of
/// their names.
pub(super) fn copy(work: &Path, globs: &GlobSet, target: &Path) -> io::Result<Vec<Product>> {
    if globs.is_empty() {
        return Ok(Vec::new());
    }
    let root = fs::canonicalize(work)?;
    let mut products = Vec::new();
    // Directories to look at, relative to the root, with whether a glob matched them.
    let mut directories = vec![(PathBuf::new(), false)];
    while let Some((directory, all)) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let relative = directory.join(entry.file_name());
            let wanted = all || globs.is_match(&relative);
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push((relative, wanted));
            } else if wanted && (kind.is_file() || kind.is_symlink()) {
                products.extend(copy_file(&root, &relative, target)?);
            }
        }
    }
    products.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(products)
}

/// `None` for a link that leads to no file of the tree.
fn copy_file(root: &Path, relative: &Path, target: &Path) -> io::Result<Option<Product>> {
    let Ok(source) = fs::canonicalize(root.join(relative)) else { return Ok(None) };
    if !source.starts_with(root) || !fs::symlink_metadata(&source)?.is_file() {
        return Ok(None);
    }
    let path = target.join(relative);
    if let Some(parent) = path.parent() {
        file::create_directory(parent)?;
    }
    let mut from = open(&source)?;
    // What is executable stays so; other special bits do not.
    let mode = if from.metadata()?.permissions().mode() & 0o100 == 0 { 0o640 } else { 0o750 };
    let mut to = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
    let (size, sha256) = hash(&mut from, &mut to)?;
    Ok(Some(Product { kind: "file".to_owned(), path, size, sha256: Some(sha256) }))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Copies and hashes at once.
fn hash(from: &mut File, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        let length = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
        size += length as u64;
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Bytes of all files below `directory`.
fn tree_size(directory: &Path) -> io::Result<u64> {
    let (mut size, mut directories) = (0, vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?; // Of a link itself.
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.is_file() {
                size += metadata.len();
            }
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn globs_select_files_of_the_tree_only() {
        let place = tempfile::tempdir().unwrap();
        let (work, target) = (place.path().join("work"), place.path().join("files"));
        fs::create_dir_all(work.join("doc/html")).unwrap();
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::write(place.path().join("secret"), "s").unwrap();
        for name in ["report.txt", "x.log", "a/y.log", "doc/html/index.html", "a/b/z.txt"] {
            fs::write(work.join(name), "hello").unwrap();
        }
        symlink("report.txt", work.join("inside.txt")).unwrap();
        symlink("../secret", work.join("outside.txt")).unwrap();
        symlink(place.path(), work.join("away")).unwrap();
        let patterns = ["./*.txt", "doc/", "a/*.log", "away/*", "../secret"].map(str::to_owned);
        let products = copy(&work, &globs(&patterns).unwrap(), &target).unwrap();
        let names: Vec<_> = products
            .iter()
            .map(|product| product.path.strip_prefix(&target).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a/y.log", "doc/html/index.html", "inside.txt", "report.txt"]);
        let product = &products[3];
        assert_eq!((product.size, product.kind.as_str()), (5, "file"));
        let hash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(product.sha256.as_deref(), Some(hash));
        assert_eq!(fs::read(&product.path).unwrap(), b"hello");
    }

    #[test]
    fn out_is_a_product_unless_it_is_a_link() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        assert_eq!(of_out(&out).unwrap(), None);
        symlink("/etc/passwd", &out).unwrap();
        assert_eq!(of_out(&out).unwrap(), None);
        fs::remove_file(&out).unwrap();
        fs::create_dir_all(out.join("bin")).unwrap();
        fs::write(out.join("bin/tool"), "12345").unwrap();
        symlink("/", out.join("root")).unwrap();
        let product = of_out(&out).unwrap().unwrap();
        assert_eq!((product.kind.as_str(), product.size), ("directory", 5));
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        assert!(globs(&["a[".to_owned()]).is_err());
    }
}
