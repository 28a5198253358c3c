//! Files and directories: modes, trees, free space.
//!
//! Invariant: nothing here follows a symbolic link inside a tree: what lies there was written by pushed code.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use super::process::User;

/// The mode of our own directories: the group may look.
const DIRECTORY_MODE: u32 = 0o750;
/// How deep a tree that a job left may be: each level costs a descriptor while it is walked, in as many threads as there
/// are slots.
const MAX_DEPTH: usize = 128;

/// Creates `path` and its parents with mode 0750 where they are missing.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// The bytes of a regular file, of at most `most` bytes. What else may be there is not opened: of a device that alone
/// may have effects, and a link may lead to one.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file")),
    };
    regular(fs::symlink_metadata(path)?)?;
    // Should it be replaced now.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = regular(file.metadata()?)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(most)).unwrap_or(0));
    io::Read::read_to_end(&mut io::Read::take(file, most.saturating_add(1)), &mut bytes)?;
    if bytes.len() as u64 > most {
        let why = format!("is larger than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(bytes)
}

/// Creates a directory of ours that others may pass through.
pub(crate) fn make_passable(path: &Path) -> io::Result<()> {
    create_directory(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o001 == 0 {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 | 0o001))?;
    }
    Ok(())
}

/// Copies a tree (directories, files with their modes, symbolic links), owned by `user` if given. `to` must not exist.
/// Its owner may write everywhere in the copy. Other kinds of file, sockets say, are left out.
pub(crate) fn copy_tree(from: &Path, to: &Path, user: Option<&User>) -> io::Result<()> {
    let give = |path: &Path| match user {
        Some(user) => lchown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    };
    let top = to;
    // A stack of our own: a tree may be deeper than ours.
    let mut directories = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = directories.pop() {
        let mode = fs::metadata(&from)?.permissions().mode();
        DirBuilder::new().mode(0o700).create(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let (kind, from, to) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
            if kind.is_dir() {
                directories.push((from, to));
                continue;
            } else if kind.is_file() {
                // By reference where the file system can, in the kernel elsewhere; the mode is kept.
                fs::copy(&from, &to)?;
                let mode = entry.metadata()?.permissions().mode();
                if mode & 0o200 == 0 {
                    fs::set_permissions(&to, Permissions::from_mode(mode & 0o777 | 0o200))?;
                }
            } else if kind.is_symlink() {
                symlink(fs::read_link(&from)?, &to)?;
            } else {
                continue;
            }
            give(&to)?;
        }
        // The top is ours alone until the tree is complete: whoever it is given to could put links in our way.
        if to != top {
            fs::set_permissions(&to, Permissions::from_mode(mode & 0o777 | 0o700))?;
            give(&to)?;
        }
    }
    let mode = fs::metadata(from)?.permissions().mode();
    fs::set_permissions(top, Permissions::from_mode(mode & 0o777 | 0o700))?;
    give(top)
}

/// Gives a whole tree to `user`, never following links.
pub(crate) fn chown_tree(path: &Path, user: &User) -> io::Result<()> {
    visit_tree(path, &mut |path| {
        let metadata = fs::symlink_metadata(path)?;
        let done = (metadata.uid(), metadata.gid()) == (user.uid, user.gid);
        if done { Ok(()) } else { lchown(path, Some(user.uid), Some(user.gid)) }
    })
}

/// Makes what a job left ours, readable by all and writable by nobody else: from then on nobody puts anything else in
/// its place. Links are neither followed nor changed, and what belongs neither to us nor to `user` was linked in from
/// elsewhere and stays as it is. `go_on` is asked at each file; its error ends the work.
pub(crate) fn take_over(
    path: &Path,
    user: Option<&User>,
    go_on: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    visit_tree(path, &mut |path| {
        go_on()?;
        // What is looked at and what is changed is the same file, whatever the job puts in its place meanwhile.
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        let theirs = user.is_some_and(|user| user.uid == metadata.uid());
        if !(metadata.is_dir() || metadata.is_file()) || !(theirs || metadata.uid() == uid) {
            return Ok(());
        }
        let itself = inside(&file);
        if theirs {
            chown(&itself, Some(uid), Some(gid))?;
        }
        let executable = metadata.is_dir() || metadata.mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        if metadata.mode() & 0o7777 != mode {
            fs::set_permissions(&itself, Permissions::from_mode(mode))?;
        }
        Ok(())
    })
}

/// Calls `visit` with a path of `path` itself and of everything below, parents first.
fn visit_tree(path: &Path, visit: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    visit(path)?;
    if fs::symlink_metadata(path)?.is_dir() {
        walk(&open_directory(path)?, MAX_DEPTH, visit)?;
    }
    Ok(())
}

/// Removes a tree even where directories in it are not writable, and however deep it is; fine if there is none.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    loop {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let top = open_directory(path)?;
                empty(&top, &top, MAX_DEPTH)?;
                fs::remove_dir(path)
            }
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // What lay too deep has been brought up.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => return result,
        }
    }
}

/// Removes what is in `directory`, for which see `walk`; a directory that is too deep becomes one of `top`'s.
fn empty(top: &File, directory: &File, depth: usize) -> io::Result<()> {
    let entries = match fs::read_dir(inside(directory)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Build tools like to make their caches read-only.
            fs::set_permissions(inside(directory), Permissions::from_mode(0o700))?;
            fs::read_dir(inside(directory))?
        }
        result => result?,
    };
    let remove = |remove: &dyn Fn() -> io::Result<()>| {
        let mut removed = remove();
        if removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            fs::set_permissions(inside(directory), Permissions::from_mode(0o700))?;
            removed = remove();
        }
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    };
    // Directories last, when this one is no longer being read: that takes a descriptor, too.
    let mut directories = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        } else {
            remove(&|| fs::remove_file(entry.path()))?;
        }
    }
    for (number, path) in directories.iter().enumerate() {
        remove(&|| {
            let child = open_directory(path)?;
            if depth == 0 {
                return bring_up(&child, path, top, number);
            }
            empty(top, &child, depth - 1)?;
            fs::remove_dir(path)
        })?;
    }
    Ok(())
}

/// Moves a directory up to `top`, under a name that is free or that of an empty directory.
fn bring_up(directory: &File, path: &Path, top: &File, number: usize) -> io::Result<()> {
    // To be moved, a directory must be writable itself.
    fs::set_permissions(inside(directory), Permissions::from_mode(0o700))?;
    for number in number.. {
        match fs::rename(path, inside(top).join(format!(".deep-{number}"))) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::NotADirectory
                ) => {}
            result => return result,
        }
    }
    Ok(())
}

/// Whether the reason is that there is no room, for us, on a file system.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes free for us on the file system that holds `path`.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let status = nix::sys::statvfs::statvfs(path)?;
    // The types differ between platforms; none is larger.
    let (blocks, size) = (status.blocks_available() as u64, status.fragment_size() as u64);
    Ok(blocks.saturating_mul(size))
}

/// Calls `visit` with a path of everything in `directory`, parents first. What vanishes meanwhile is passed over.
///
/// Jobs of the same user may run beside us and put a link where a directory was. Hence each directory is opened once,
/// and everything in it reached through that descriptor.
fn walk(
    directory: &File,
    depth: usize,
    visit: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a tree of directories is too deep",
        ));
    }
    let present = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    // Down into directories when this one is no longer being read: that takes a descriptor, too.
    let mut directories = Vec::new();
    for entry in fs::read_dir(inside(directory))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
        present(visit(&entry.path()))?;
    }
    for path in directories {
        let below = open_directory(&path).and_then(|below| walk(&below, depth - 1, visit));
        present(below)?;
    }
    Ok(())
}

/// A handle on the directory itself, also on one that may not be read.
fn open_directory(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn inside(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn put(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// A tree with everything in it that a checkout may have.
    fn tree(path: &Path) {
        create_directory(&path.join("a/b/c")).unwrap();
        put(&path.join("a/run"), "#!/bin/sh\n", 0o755);
        put(&path.join("a/b/text"), "text", 0o444);
        symlink("../run", path.join("a/b/link")).unwrap();
        symlink("/etc", path.join("a/outside")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        fs::set_permissions(path.join("a/b"), Permissions::from_mode(0o555)).unwrap();
    }

    #[test]
    fn a_copy_is_the_same_but_writable() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        tree(&from);
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        copy_tree(&from, &to, None).unwrap();
        assert_eq!(fs::read(to.join("a/run")).unwrap(), b"#!/bin/sh\n");
        assert_eq!((mode(&to), mode(&to.join("a/b"))), (0o750, 0o755));
        assert_eq!((mode(&to.join("a/run")), mode(&to.join("a/b/text"))), (0o755, 0o644));
        assert_eq!(fs::read_link(to.join("a/b/link")).unwrap(), Path::new("../run"));
        assert_eq!(fs::read_link(to.join("a/outside")).unwrap(), Path::new("/etc"));
        assert!(to.join("a/b/c").is_dir() && fs::symlink_metadata(to.join("pipe")).is_err());
        assert_eq!(copy_tree(&from, &to, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(mode(&from.join("a/b")), 0o555);
    }

    #[test]
    fn trees_are_given_away_and_back_without_following_links() {
        if !nix::unistd::geteuid().is_root() {
            return; // Only root can give files away.
        }
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        tree(&from);
        let user = User::find("nobody").unwrap().unwrap();
        copy_tree(&from, &to, Some(&user)).unwrap();
        let owner = |path: &str| fs::symlink_metadata(to.join(path)).unwrap().uid();
        let all = ["", "a", "a/b", "a/b/text", "a/b/link", "a/outside", "dangling"];
        assert!(all.iter().all(|path| owner(path) == user.uid));
        assert_eq!(fs::metadata("/etc").unwrap().uid(), 0);
        chown_tree(&to.join("dangling"), &user).unwrap();
        assert_eq!(owner("dangling"), user.uid);
        let other = User::find("daemon").unwrap().unwrap();
        put(&to.join("others"), "", 0o600);
        lchown(to.join("others"), Some(other.uid), None).unwrap();
        put(&to.join("a/b/closed"), "", 0o4600);
        let closed = to.join("a/b/c");
        fs::set_permissions(&closed, Permissions::from_mode(0o1773)).unwrap();
        take_over(&to, Some(&user), &|| Ok(())).unwrap();
        assert!(["", "a", "a/b", "a/b/text"].into_iter().all(|path| owner(path) == 0));
        assert_eq!(owner("a/outside"), user.uid);
        let modes =
            ["a", "a/b/c", "a/run", "a/b/text", "a/b/closed"].map(|path| mode(&to.join(path)));
        assert_eq!(modes, [0o755, 0o755, 0o755, 0o644, 0o644]);
        assert_eq!((owner("others"), mode(&to.join("others"))), (other.uid, 0o600));
        assert_eq!(fs::metadata("/etc").unwrap().uid(), 0);
        let refused = take_over(&to, None, &|| Err(io::Error::other("enough"))).unwrap_err();
        assert_eq!(refused.to_string(), "enough");
    }

    #[test]
    fn a_tree_too_deep_is_an_error_and_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        create_directory(&top.join("e/".repeat(MAX_DEPTH + 1))).unwrap();
        let error = take_over(&top, None, &|| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        // Deeper than a process has descriptors, or a thread has stack, and with names like ours.
        let mut deep = directory.path().join("0");
        create_directory(&deep.join(".deep-0/x")).unwrap();
        for n in 1..60 {
            let next = directory.path().join(n.to_string());
            create_directory(&next.join("d/".repeat(100)).join(".deep-0")).unwrap();
            fs::rename(&deep, next.join("d/".repeat(100)).join("e")).unwrap();
            deep = next;
        }
        fs::rename(deep, top.join("f")).unwrap();
        remove_tree(&top).unwrap();
        assert!(fs::symlink_metadata(&top).is_err());
    }

    #[test]
    fn trees_are_removed_whatever_their_modes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tree");
        remove_tree(&path).unwrap();
        tree(&path);
        for closed in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(path.join(closed), Permissions::from_mode(0o0)).unwrap();
        }
        remove_tree(&path).unwrap();
        assert!(fs::symlink_metadata(&path).is_err());
        put(&path, "", 0o600);
        remove_tree(&path).unwrap();
        assert!(!path.exists() && Path::new("/etc").exists());
    }

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        put(&file, "text", 0o600);
        symlink(&file, &link).unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"text");
        for other in [&link, Path::new("/dev/null"), directory.path()] {
            assert_eq!(read(other, 4).unwrap_err().to_string(), "is no regular file");
        }
        assert!(read(&file, 3).is_err());
    }

    #[test]
    fn there_is_free_space() {
        assert!(free_space(Path::new("/")).unwrap() > 0);
        assert!(free_space(Path::new("/no/such")).is_err());
    }
}
