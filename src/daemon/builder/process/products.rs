//! What a process build leaves: its `$out`, and copies of the files that its globs match.
//!
//! Invariant: nothing from outside the build's own directories becomes a product: what the build left is taken over
//! before it is looked at, and symbolic links are followed only to files within the working directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::daemon::builder::measure;
use crate::daemon::builder::running::Leash;
use crate::model::build::Product;
use crate::sys::process::{Killer, User};
use crate::sys::{clock, file};

/// Files that the globs of one build may match: each is a row in the books and a line on a page.
const MAX_PRODUCTS: usize = 10_000;

/// Why what a build left was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// The build left what no build may leave.
    Bad(String),
    Canceled,
    Io(io::Error),
}

/// Outputs by name, and products.
type Taken = (BTreeMap<String, String>, Vec<Product>);

/// Takes what one build left, until the build is canceled or a deadline has passed.
pub(super) struct Collector<'a> {
    user: Option<&'a User>,
    leash: &'a Leash<Killer>,
    patience: Duration,
    deadline: Instant,
}

impl<'a> Collector<'a> {
    /// `user` is who the build ran as, if not the daemon's own.
    pub(super) fn new(
        user: Option<&'a User>,
        leash: &'a Leash<Killer>,
        patience: Duration,
    ) -> Self {
        Self { user, leash, patience, deadline: clock::now() + patience }
    }

    /// Takes over `directory/out`, and puts the files in `work` that `globs` match into `directory/files`. Nothing of
    /// the build may run any more.
    pub(super) fn collect(
        &self,
        work: &Path,
        globs: &GlobSet,
        directory: &Path,
    ) -> Result<Taken, Refused> {
        self.attempt(work, globs, directory).map_err(|error| {
            if self.leash.is_canceled() {
                Refused::Canceled
            } else if clock::now() >= self.deadline {
                let seconds = self.patience.as_secs();
                Refused::Bad(format!("taking its products took longer than {seconds} s"))
            } else if is_ours(&error) {
                Refused::Bad(error.to_string())
            } else {
                Refused::Io(error)
            }
        })
    }

    fn attempt(&self, work: &Path, globs: &GlobSet, directory: &Path) -> io::Result<Taken> {
        let out = directory.join("out");
        file::take_over(directory, self.user, &|| self.go_on())?;
        // The build might have put a link where its copies go.
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name() != OsStr::new("out") {
                file::remove_tree(&entry.path())?;
            }
        }
        let mut products = Vec::new();
        if !globs.is_empty() {
            file::take_over(work, self.user, &|| self.go_on())?;
            products = self.copy(work, globs, &directory.join("files"))?;
        }
        products.extend(self.of_out(&out)?);
        let mut outputs = BTreeMap::new();
        if fs::symlink_metadata(&out).is_ok() {
            outputs.insert("out".to_owned(), out.to_string_lossy().into_owned());
        }
        Ok((outputs, products))
    }

    /// Whether there is still time, and anybody who wants it.
    fn go_on(&self) -> io::Result<()> {
        if self.leash.is_canceled() || clock::now() >= self.deadline {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    /// The product at `out`, if there is a file or directory.
    fn of_out(&self, out: &Path) -> io::Result<Option<Product>> {
        let metadata = match fs::symlink_metadata(out) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let (kind, size, sha256) = if metadata.is_file() {
            (
                "file",
                metadata.len(),
                Some(measure::hash(&mut open(out)?, None, &|| self.go_on())?.1),
            )
        } else if metadata.is_dir() {
            ("directory", measure::tree_size(out, &|| self.go_on())?, None)
        } else {
            return Ok(None);
        };
        Ok(Some(Product { kind: kind.to_owned(), path: out.to_owned(), size, sha256 }))
    }

    /// Copies the files in `work` that `globs` match, or that lie in a directory they match, to `target`; in the order
    /// of their names.
    fn copy(&self, work: &Path, globs: &GlobSet, target: &Path) -> io::Result<Vec<Product>> {
        let root = fs::canonicalize(work)?;
        let mut products = Vec::new();
        // Directories to look at, relative to the root, with whether a glob matched them.
        let mut directories = vec![(PathBuf::new(), false)];
        while let Some((directory, all)) = directories.pop() {
            for entry in fs::read_dir(root.join(&directory))? {
                self.go_on()?;
                let entry = entry?;
                let relative = directory.join(entry.file_name());
                let wanted = all || globs.is_match(&relative);
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    directories.push((relative, wanted));
                } else if wanted && (kind.is_file() || kind.is_symlink()) {
                    products.extend(self.copy_file(&root, &relative, target)?);
                    if products.len() > MAX_PRODUCTS {
                        let why = format!("its products are more than {MAX_PRODUCTS} files");
                        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                    }
                }
            }
        }
        products.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(products)
    }

    /// `None` for a link that leads to no file of the tree.
    fn copy_file(
        &self,
        root: &Path,
        relative: &Path,
        target: &Path,
    ) -> io::Result<Option<Product>> {
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
        let (size, sha256) = measure::hash(&mut from, Some(&mut to), &|| self.go_on())?;
        Ok(Some(Product { kind: "file".to_owned(), path, size, sha256: Some(sha256) }))
    }
}

/// Whether the build has to answer for an error: it left more than is taken, or paths that no program can open.
fn is_ours(error: &io::Error) -> bool {
    let kind = error.kind();
    let refused = kind == io::ErrorKind::InvalidInput && error.raw_os_error().is_none();
    refused || matches!(kind, io::ErrorKind::InvalidFilename | io::ErrorKind::FileTooLarge)
}

/// Reads the globs, which are relative to the working directory; `*` does not match a slash.
pub(super) fn globs(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
        set.add(GlobBuilder::new(pattern).literal_separator(true).build()?);
    }
    set.build()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// Generous: nothing here takes long.
    const LONG: Duration = Duration::from_secs(60);

    fn collect(place: &Path, patterns: &[&str]) -> Result<Taken, Refused> {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let (globs, leash) = (globs(&patterns).unwrap(), Leash::default());
        let (work, left) = (place.join("work"), place.join("left"));
        Collector::new(None, &leash, LONG).collect(&work, &globs, &left)
    }

    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("work")).unwrap();
        fs::create_dir_all(place.path().join("left")).unwrap();
        place
    }

    #[test]
    fn globs_select_files_of_the_tree_only() {
        let place = place();
        let (work, left) = (place.path().join("work"), place.path().join("left"));
        fs::create_dir_all(work.join("doc/html")).unwrap();
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::write(place.path().join("secret"), "s").unwrap();
        for name in ["report.txt", "x.log", "a/y.log", "doc/html/index.html", "a/b/z.txt"] {
            fs::write(work.join(name), "hello").unwrap();
        }
        symlink("report.txt", work.join("inside.txt")).unwrap();
        symlink("../secret", work.join("outside.txt")).unwrap();
        symlink(place.path(), work.join("away")).unwrap();
        // A trap: copies would go to the link's end.
        symlink(place.path(), left.join("files")).unwrap();
        let patterns = ["./*.txt", "doc/", "a/*.log", "away/*", "../secret"];
        let (_, products) = collect(place.path(), &patterns).unwrap();
        let target = left.join("files");
        assert!(!fs::symlink_metadata(&target).unwrap().is_symlink());
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
        let place = place();
        let out = place.path().join("left/out");
        assert_eq!(collect(place.path(), &[]).unwrap(), Taken::default());
        symlink("/etc/passwd", &out).unwrap();
        assert_eq!(collect(place.path(), &[]).unwrap().1, []);
        fs::remove_file(&out).unwrap();
        fs::create_dir_all(out.join("bin")).unwrap();
        fs::write(out.join("bin/tool"), "12345").unwrap();
        symlink("/", out.join("root")).unwrap();
        let (outputs, products) = collect(place.path(), &[]).unwrap();
        assert_eq!((products[0].kind.as_str(), products[0].size), ("directory", 5));
        assert_eq!(outputs["out"], out.to_str().unwrap());
    }

    #[test]
    fn holes_are_copied_as_holes() {
        let place = place();
        let work = place.path().join("work");
        let mut file = File::create(work.join("disk.img")).unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(b"data").unwrap();
        file.set_len(32 << 20).unwrap();
        let (_, products) = collect(place.path(), &["*.img"]).unwrap();
        assert_eq!(products[0].size, 32 << 20);
        assert!(fs::read(&products[0].path).unwrap() == fs::read(work.join("disk.img")).unwrap());
        // In units of 512 bytes.
        assert!(fs::metadata(&products[0].path).unwrap().blocks() < (1 << 20) / 512);
    }

    #[test]
    fn a_deadline_and_a_cancel_end_it() {
        let place = place();
        let (work, left) = (place.path().join("work"), place.path().join("left"));
        File::create(left.join("out")).unwrap().set_len(1 << 43).unwrap();
        let (globs, leash) = (globs(&[]).unwrap(), Leash::default());
        let short = Collector::new(None, &leash, Duration::from_millis(50));
        let refused = short.collect(&work, &globs, &left).unwrap_err();
        assert!(matches!(&refused, Refused::Bad(why) if why.contains("longer")), "{refused:?}");
        std::thread::scope(|scope| {
            let collector = Collector::new(None, &leash, LONG);
            let run = scope.spawn(move || collector.collect(&work, &globs, &left).unwrap_err());
            leash.cancel();
            assert!(matches!(run.join().unwrap(), Refused::Canceled));
        });
    }

    #[test]
    fn the_build_answers_for_what_cannot_be_taken() {
        let bad = |result: Result<Taken, Refused>| match result {
            Err(Refused::Bad(why)) => why,
            other => panic!("{other:?}"),
        };
        let deep = place();
        fs::create_dir_all(deep.path().join("left/out").join("d/".repeat(200))).unwrap();
        assert_eq!(bad(collect(deep.path(), &[])), "a tree of directories is too deep");
        let many = place();
        for n in 0..=MAX_PRODUCTS {
            File::create(many.path().join(format!("work/{n}"))).unwrap();
        }
        assert_eq!(bad(collect(many.path(), &["*"])), "its products are more than 10000 files");
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        assert!(globs(&["a[".to_owned()]).is_err());
    }
}
