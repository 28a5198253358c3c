//! Looks in process, at real repositories: local ones, and the same through git's own daemon.

mod hostile;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use git2::{Oid, Repository, Signature, Time};
use tempfile::TempDir;

use super::gitserver::Daemon;
use super::session::Session;
use super::wire::Request;
use super::*;

const SILENCE: Duration = Duration::from_secs(60);

/// A directory with repositories and a place for mirrors and checkouts.
struct World {
    directory: TempDir,
    daemon: Option<Daemon>,
}

impl World {
    fn local() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), daemon: None }
    }

    /// One whose repositories are looked at through `git daemon`.
    fn served() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Some(Daemon::start(directory.path()));
        Self { directory, daemon }
    }

    fn both() -> [Self; 2] {
        [Self::local(), Self::served()]
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn url(&self, name: &str) -> String {
        match &self.daemon {
            Some(daemon) => daemon.url(name),
            None => self.path().join(name).to_str().unwrap().to_owned(),
        }
    }

    fn repository(&self, name: &str) -> Author {
        Author::new(&self.path().join(name))
    }

    /// The answers, and the number of packs asked for.
    fn look(&self, name: &str, references: &[Reference]) -> (wire::Answer, u32) {
        self.look_at(&self.url(name), references)
    }

    fn look_at(&self, url: &str, references: &[Reference]) -> (wire::Answer, u32) {
        let places = Places {
            mirrors: self.path().join("cache/git"),
            checkouts: self.path().join("cache/checkouts"),
        };
        let look = Look { url: url.to_owned(), references: references.to_vec() };
        let request = Request { places, look, silence: SILENCE };
        let session = Session::new(request, Box::new(io::sink()), None);
        (session.answer(), session.fetches.get())
    }

    fn one(&self, name: &str, reference: Reference) -> Result<Resolved, Error> {
        self.look(name, &[reference]).0.unwrap().remove(0)
    }

    fn mirror(&self, name: &str) -> PathBuf {
        let url = url::Url::parse(&self.url(name)).unwrap();
        self.path().join("cache/git").join(url.hash())
    }
}

/// Writes history into a repository without a working tree.
struct Author {
    repository: Repository,
}

/// An entry of a tree: its mode and contents (of a submodule: its commit).
type Entry<'a> = (&'a [u8], i32, Vec<u8>);

fn file<'a>(name: &'a str, contents: &str) -> Entry<'a> {
    (name.as_bytes(), 0o100_644, contents.into())
}

impl Author {
    fn new(path: &Path) -> Self {
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).initial_head("main").external_template(false);
        Self { repository: Repository::init_opts(path, &options).unwrap() }
    }

    /// Writes the tree byte by byte, so that it may hold what git itself refuses.
    fn tree(&self, entries: &[Entry<'_>]) -> Oid {
        let odb = self.repository.odb().unwrap();
        let mut bytes = Vec::new();
        for (name, mode, contents) in entries {
            let id = match mode & 0o170_000 {
                0o160_000 | 0o040_000 => Oid::from_str(str::from_utf8(contents).unwrap()).unwrap(),
                _ => self.repository.blob(contents).unwrap(),
            };
            bytes.extend(format!("{mode:o} ").bytes());
            bytes.extend(*name);
            bytes.push(0);
            bytes.extend(id.as_bytes());
        }
        odb.write(git2::ObjectType::Tree, &bytes).unwrap()
    }

    /// Commits `entries` onto `branch`, or anew where `parent` is none.
    fn commit_on(&self, branch: &str, parent: Option<Oid>, entries: &[Entry<'_>]) -> Oid {
        let tree = self.repository.find_tree(self.tree(entries)).unwrap();
        let who = Signature::new("A", "a@b", &Time::new(1_700_000_000, 0)).unwrap();
        let parent = parent.map(|id| self.repository.find_commit(id).unwrap());
        let parents: Vec<_> = parent.iter().collect();
        let id = self.repository.commit(None, &who, &who, "m", &tree, &parents).unwrap();
        self.repository.reference(&format!("refs/heads/{branch}"), id, true, "").unwrap();
        id
    }

    fn commit(&self, branch: &str, entries: &[Entry<'_>]) -> Oid {
        let tip = self.repository.find_reference(&format!("refs/heads/{branch}"));
        let tip = tip.ok().and_then(|tip| tip.target());
        self.commit_on(branch, tip, entries)
    }

    fn delete(&self, branch: &str) {
        self.repository.find_reference(&format!("refs/heads/{branch}")).unwrap().delete().unwrap();
    }
}

fn branch(name: &str) -> Reference {
    Reference::Branch(name.to_owned())
}

fn commit(id: Oid) -> Reference {
    Reference::Commit(id.to_string())
}

fn read(resolved: &Resolved, name: &str) -> String {
    fs::read_to_string(resolved.directory.join(name)).unwrap()
}

#[test]
fn branches_tags_commits_and_head_are_resolved() {
    for world in World::both() {
        let author = world.repository("r");
        let first = author.commit("main", &[file("f", "1")]);
        let second = author.commit("topic/x", &[file("f", "2")]);
        let repository = &author.repository;
        let object = repository.find_object(first, None).unwrap();
        let who = Signature::now("A", "a@b").unwrap();
        repository.tag_lightweight("light", &object, false).unwrap();
        let inner = repository.tag("noted", &object, &who, "m", false).unwrap();
        let inner = repository.find_object(inner, None).unwrap();
        repository.tag("outer", &inner, &who, "m", false).unwrap();
        let blob = repository.blob(b"b").unwrap();
        let blob = repository.find_object(blob, None).unwrap();
        repository.tag_lightweight("blob", &blob, false).unwrap();
        let tag = |name: &str| Reference::Tag(name.to_owned());
        let (answer, fetches) = world.look(
            "r",
            &[
                Reference::Head,
                branch("topic/x"),
                tag("light"),
                tag("noted"),
                tag("outer"),
                commit(first),
                branch("none"),
                tag("none"),
                tag("blob"),
                branch("b a d"),
            ],
        );
        assert_eq!(fetches, 1);
        let answer = answer.unwrap();
        let commits: Vec<_> = answer[..6].iter().map(|r| r.clone().unwrap().commit).collect();
        let (one, two) = (first.to_string(), second.to_string());
        assert_eq!(commits, [one.as_str(), &two, &one, &one, &one, &one]);
        let errors: Vec<_> = answer[6..].iter().map(|r| r.clone().unwrap_err().0).collect();
        let url = world.url("r");
        let expected = ["no branch none", "no tag none", "blob is not a commit", "no branch b a d"];
        assert!(errors.iter().zip(expected).all(|(e, x)| e.starts_with(&url) && e.contains(x)));
        assert_eq!(read(answer[1].as_ref().unwrap(), "f"), "2");
        let tree = repository.find_commit(first).unwrap().tree_id().to_string();
        assert_eq!(answer[0].as_ref().unwrap().tree, tree);
    }
}

#[test]
fn an_unchanged_look_fetches_nothing_and_touches_the_checkout() {
    for world in World::both() {
        let author = world.repository("r");
        author.commit("main", &[file("f", "1")]);
        let first = world.one("r", Reference::Head).unwrap();
        fs::File::open(&first.directory).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let (answer, fetches) = world.look("r", &[Reference::Head, branch("main")]);
        assert_eq!(fetches, 0);
        assert_eq!(answer.unwrap(), [Ok(first.clone()), Ok(first.clone())]);
        let modified = fs::metadata(&first.directory).unwrap().modified().unwrap();
        assert!(modified > UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        // Later history comes as little packs.
        let second = author.commit("main", &[file("f", "2")]);
        let (answer, fetches) = world.look("r", &[Reference::Head]);
        assert_eq!((answer.unwrap()[0].clone().unwrap().commit, fetches), (second.to_string(), 1));
    }
}

#[test]
fn history_may_be_rewritten_and_branches_come_and_go() {
    for world in World::both() {
        let author = world.repository("r");
        author.commit("main", &[file("f", "1")]);
        let old = author.commit("a", &[file("f", "a")]);
        assert!(world.one("r", branch("a")).is_ok());

        let forced = author.commit_on("main", None, &[file("f", "forced")]);
        assert_eq!(world.one("r", branch("main")).unwrap().commit, forced.to_string());

        author.delete("a");
        let gone = world.one("r", branch("a")).unwrap_err();
        assert_eq!(gone.0, format!("{}: no branch a", world.url("r")));
        // A branch in the place where another's file was.
        let below = author.commit("a/b", &[file("f", "a/b")]);
        assert_eq!(world.one("r", branch("a/b")).unwrap().commit, below.to_string());

        author.commit("trunk", &[file("f", "trunk")]);
        author.repository.set_head("refs/heads/trunk").unwrap();
        author.delete("main");
        assert_eq!(read(&world.one("r", Reference::Head).unwrap(), "f"), "trunk");
        author.repository.set_head("refs/heads/nowhere").unwrap();
        let none = world.one("r", Reference::Head).unwrap_err();
        assert!(none.0.ends_with("no HEAD commit"), "{}", none.0);
        author.repository.set_head_detached(old).unwrap();
        assert_eq!(read(&world.one("r", Reference::Head).unwrap(), "f"), "a");
    }
}

#[test]
fn a_commit_needs_no_network_once_it_is_there() {
    for world in World::both() {
        let author = world.repository("r");
        let first = author.commit("main", &[file("f", "1")]);
        author.commit("main", &[file("f", "2")]);
        assert_eq!(read(&world.one("r", commit(first)).unwrap(), "f"), "1");
        let gone = Oid::from_str(&"1".repeat(40)).unwrap();
        let (answer, _) = world.look("r", &[commit(gone), commit(first)]);
        let answer = answer.unwrap();
        let error = answer[0].clone().unwrap_err().0;
        assert_eq!(error, format!("{}: no commit {gone}", world.url("r")));
        assert!(answer[1].is_ok());
        fs::remove_dir_all(world.path().join("r")).unwrap();
        assert!(world.one("r", commit(first)).is_ok());
        assert!(world.look("r", &[branch("main")]).0.is_err());
    }
}

#[test]
fn a_commit_on_no_branch_is_asked_for_by_itself() {
    for world in World::both() {
        let author = world.repository("r");
        author.commit("main", &[file("f", "1")]);
        let lost = author.commit("side", &[file("f", "lost")]);
        author.delete("side");
        author
            .repository
            .config()
            .unwrap()
            .set_bool("uploadpack.allowAnySHA1InWant", true)
            .unwrap();
        assert_eq!(read(&world.one("r", commit(lost)).unwrap(), "f"), "lost");
    }
}

#[test]
fn a_corrupt_mirror_is_fetched_anew() {
    type Harm = fn(&Path);
    let harms: [Harm; 5] = [
        |mirror| fs::remove_file(mirror.join("HEAD")).unwrap(),
        |mirror| fs::remove_dir_all(mirror.join("objects")).unwrap(),
        |mirror| fs::write(mirror.join("config"), "[broken").unwrap(),
        |mirror| fs::remove_dir_all(mirror).unwrap(),
        // Every object file is still there, and holds nothing.
        |mirror| {
            let mut directories = vec![mirror.join("objects")];
            while let Some(directory) = directories.pop() {
                for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                    if entry.file_type().unwrap().is_dir() {
                        directories.push(entry.path());
                    } else {
                        fs::set_permissions(entry.path(), PermissionsExt::from_mode(0o644))
                            .unwrap();
                        fs::write(entry.path(), "").unwrap();
                    }
                }
            }
        },
    ];
    for world in World::both() {
        let author = world.repository("r");
        author.commit("main", &[file("f", "1")]);
        for (n, harm) in harms.iter().enumerate() {
            let before = world.one("r", branch("main")).unwrap();
            harm(&world.mirror("r"));
            // With a checkout to make, and with none.
            if n % 2 == 0 {
                fs::remove_dir_all(&before.directory).unwrap();
            }
            let (answer, fetches) = world.look("r", &[branch("main")]);
            assert_eq!(answer.unwrap(), [Ok(before.clone())], "harm {n}");
            // Once more where the breakage shows only when the old mirror is fetched into.
            assert!((1..=2).contains(&fetches), "harm {n}: {fetches}");
            assert_eq!(read(&before, "f"), "1");
        }
    }
}

#[test]
fn a_missing_object_is_noticed_when_its_tree_is_checked_out() {
    let world = World::local();
    let author = world.repository("r");
    let tip = author.commit("main", &[file("f", "1"), file("g", "2")]);
    let before = world.one("r", branch("main")).unwrap();
    fs::remove_dir_all(&before.directory).unwrap();
    let blob = author.repository.blob(b"2").unwrap().to_string();
    let loose = world.mirror("r").join("objects").join(&blob[..2]).join(&blob[2..]);
    fs::remove_file(loose).unwrap();
    assert_eq!(world.one("r", commit(tip)).unwrap(), before);
    assert_eq!(read(&before, "g"), "2");
}

#[test]
fn what_a_killed_look_left_behind_is_no_obstacle() {
    for world in World::both() {
        let author = world.repository("r");
        author.commit("main", &[file("f", "1")]);
        // Before the first fetch was done, and then in an existing mirror.
        let aside = world.mirror("r").with_extension("new");
        fs::create_dir_all(aside.join("objects/pack")).unwrap();
        let first = world.one("r", branch("main")).unwrap();
        assert!(!aside.exists());
        let mirror = world.mirror("r");
        let reference = Repository::open_bare(&mirror).unwrap();
        let names: Vec<_> = reference
            .references()
            .unwrap()
            .map(|r| r.unwrap().name().unwrap().to_owned())
            .collect();
        for lock in ["HEAD.lock", "config.lock", "packed-refs.lock", "objects/pack/pack-x.idx.lock"]
        {
            fs::write(mirror.join(lock), "").unwrap();
        }
        for name in names {
            fs::write(mirror.join(format!("{name}.lock")), "").unwrap();
        }
        let partial = mirror.join("objects/pack/pack_git2_abcdef");
        fs::write(&partial, "PACK").unwrap();
        fs::create_dir_all(first.directory.with_extension("new")).unwrap();
        author.commit("main", &[file("f", "2")]);
        let second = world.one("r", branch("main")).unwrap();
        assert_eq!(read(&second, "f"), "2");
        assert!(!partial.exists());
    }
}

#[test]
fn modes_and_links_are_kept() {
    let world = World::local();
    let author = world.repository("r");
    let inner = author.tree(&[(b"run", 0o100_755, b"#!".into())]).to_string();
    author.commit(
        "main",
        &[
            (b"bin", 0o040_000, inner.into()),
            (b"link", 0o120_000, b"bin/run".into()),
            (b"odd \xff", 0o100_644, b"".into()),
            (b"up", 0o120_000, b"../../../etc/passwd".into()),
        ],
    );
    let at = world.one("r", Reference::Head).unwrap().directory;
    let mode = |name: &str| fs::metadata(at.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("bin/run"), 0o755);
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("bin/run"));
    assert_eq!(fs::read_link(at.join("up")).unwrap(), Path::new("../../../etc/passwd"));
    assert!(at.join(OsStr::from_bytes(b"odd \xff")).exists());
    assert!(!at.join(".git").exists());
}

#[test]
fn trees_that_lead_out_of_the_checkout_are_refused() {
    let world = World::local();
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for (n, name) in [&b".."[..], b".git", b".GIT", b"a/b", b"."].into_iter().enumerate() {
        let author = world.repository(&format!("r{n}"));
        let inner = author.tree(&[(name, 0o100_644, b"x".into())]).to_string();
        author.commit("main", &[(b"d", 0o040_000, inner.into())]);
        let error = world.one(&format!("r{n}"), Reference::Head).unwrap_err();
        assert!(error.0.contains("cannot"), "{}", error.0);
    }
    // First a link out, then a directory of the same name.
    let author = world.repository("twice");
    let inner = author.tree(&[file("evil", "x")]).to_string();
    let link = outside.to_str().unwrap().as_bytes().to_vec();
    author.commit("main", &[(b"d", 0o120_000, link), (b"d", 0o040_000, inner.into())]);
    assert!(world.one("twice", Reference::Head).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let left = fs::read_dir(world.path().join("cache/checkouts")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn submodules_are_checked_out_recursively() {
    for world in World::both() {
        let leaf = world.repository("leaf");
        let in_leaf = leaf.commit("main", &[file("f", "leaf")]).to_string();
        leaf.commit("main", &[file("f", "newer")]);
        let middle = world.repository("middle");
        let in_middle = middle
            .commit(
                "main",
                &[
                    file(".gitmodules", "[submodule \"l\"]\n path = l\n url = ../leaf\n"),
                    (b"l", 0o160_000, in_leaf.into()),
                ],
            )
            .to_string();
        let top = world.repository("top");
        let modules = "[submodule \"m\"]\n path = lib/m\n url = ../middle\n\
                       [submodule \"n\"]\n path = none\n url = ../nowhere\n update = none\n";
        let lib = top.tree(&[(b"m", 0o160_000, in_middle.clone().into())]).to_string();
        top.commit(
            "main",
            &[
                file(".gitmodules", modules),
                (b"lib", 0o040_000, lib.into()),
                (b"none", 0o160_000, in_middle.clone().into()),
                (b"stray", 0o160_000, in_middle.into()),
            ],
        );
        let at = world.one("top", Reference::Head).unwrap();
        assert_eq!(read(&at, "lib/m/l/f"), "leaf");
        assert!(at.directory.join("none").is_dir() && at.directory.join("stray").is_dir());
        // A broken mirror of a submodule is replaced, too.
        fs::remove_dir_all(&at.directory).unwrap();
        fs::remove_dir_all(world.mirror("leaf").join("objects")).unwrap();
        assert_eq!(read(&world.one("top", Reference::Head).unwrap(), "lib/m/l/f"), "leaf");
    }
}

#[test]
fn submodules_that_cannot_be_had_are_named() {
    let world = World::served();
    let secret = world.repository("secret");
    let id = secret.commit("main", &[file("f", "1")]).to_string();
    let path = world.path().join("secret");
    let loop_author = world.repository("loop");
    for (url, expected) in [
        (path.to_str().unwrap(), "must not be on this machine"),
        (&format!("file://{}", path.display()), "must not be on this machine"),
        ("../nowhere", "cannot look at it"),
        ("ext::sh -c id", "not an absolute path"),
    ] {
        let modules = format!("[submodule \"s\"]\n path = s\n url = {url}\n");
        loop_author
            .commit("main", &[file(".gitmodules", &modules), (b"s", 0o160_000, id.clone().into())]);
        let error = world.one("loop", Reference::Head).unwrap_err().0;
        assert!(error.contains("submodule s: ") && error.contains(expected), "{error}");
    }
    // Each commit has the one before it as its submodule.
    let chain = world.repository("chain");
    let mut id = chain.commit("main", &[file("f", "1")]).to_string();
    for _ in 0..10 {
        let modules = file(".gitmodules", "[submodule \"s\"]\n path = s\n url = ../chain\n");
        id = chain.commit("main", &[modules, (b"s", 0o160_000, id.into())]).to_string();
    }
    let error = world.one("chain", Reference::Head).unwrap_err().0;
    assert!(error.contains("too many submodules"), "{error}");
}

#[test]
fn odd_repositories_are_looked_at_all_the_same() {
    for world in World::both() {
        let author = world.repository("r");
        let tip = author.commit("main", &[file("f", "1")]);
        // Dangling, broken, and not UTF-8.
        let git = author.repository.path().to_owned();
        fs::create_dir_all(git.join("refs/remotes/origin")).unwrap();
        fs::write(git.join("refs/remotes/origin/HEAD"), "ref: refs/remotes/origin/x\n").unwrap();
        fs::write(git.join(OsStr::from_bytes(b"refs/heads/\xff")), format!("{tip}\n")).unwrap();
        assert_eq!(world.one("r", branch("main")).unwrap().commit, tip.to_string());
        symlink(world.path().join("r"), world.path().join("link")).unwrap();
        assert!(world.one("link", branch("main")).is_ok());

        let empty = world.repository("empty");
        let none = world.one("empty", Reference::Head).unwrap_err();
        assert!(none.0.ends_with("no HEAD commit"), "{}", none.0);
        let tip = empty.commit("main", &[file("f", "1")]);
        assert_eq!(world.one("empty", Reference::Head).unwrap().commit, tip.to_string());
    }
    let world = World::local();
    world.repository("r").commit("main", &[file("f", "1")]);
    let url = format!("file://{}", world.url("r"));
    assert!(world.look_at(&url, &[Reference::Head]).0.is_ok());
    let bad = world.look_at("nonsense://user:pass@host/x", &[Reference::Head]).0.unwrap_err();
    assert!(bad.0.starts_with("host/x: not"), "{}", bad.0);
}

#[test]
fn a_local_repository_that_borrows_objects_is_copied_whole() {
    let world = World::local();
    let lender = world.repository("lender");
    let base = lender.commit("main", &[file("f", "1")]);
    let borrower = world.repository("borrower");
    let info = borrower.repository.path().join("objects/info");
    fs::write(
        info.join("alternates"),
        format!("{}\n", world.path().join("lender/objects").display()),
    )
    .unwrap();
    let author = Author { repository: Repository::open(world.path().join("borrower")).unwrap() };
    author.commit_on("main", Some(base), &[file("f", "1"), file("g", "2")]);
    let at = world.one("borrower", Reference::Head).unwrap();
    assert_eq!((read(&at, "f"), read(&at, "g")), ("1".into(), "2".into()));
}

#[test]
fn many_small_packs_become_one() {
    let world = World::local();
    let author = world.repository("r");
    let packs = |world: &World| {
        let files = fs::read_dir(world.mirror("r").join("objects/pack")).unwrap();
        files.filter(|f| f.as_ref().unwrap().path().extension().unwrap() == "pack").count()
    };
    let mut first = None;
    for n in 0..60 {
        let tip = author.commit("main", &[file("f", &n.to_string())]);
        first.get_or_insert(tip);
        assert_eq!(world.one("r", branch("main")).unwrap().commit, tip.to_string());
    }
    assert!(packs(&world) < 50, "{}", packs(&world));
    let first = first.unwrap();
    fs::remove_dir_all(world.path().join("cache/checkouts")).unwrap();
    let (answer, fetches) = world.look("r", &[commit(first), branch("main")]);
    assert_eq!((answer.unwrap().iter().filter(|r| r.is_ok()).count(), fetches), (2, 0));
}

#[test]
fn children_get_no_more_of_the_environment_than_they_need() {
    let ours =
        [("PATH", "p"), ("SECRET", "s"), ("GIT_DIR", "d"), ("GIT_ASKPASS", "a"), ("GIT_X", "x")];
    let mut theirs = environment(ours.map(|(n, v)| (n.into(), v.into())).into_iter());
    theirs.sort();
    let expected = [
        ("GIT_ASKPASS", "false"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_X", "x"),
        ("PATH", "p"),
        ("SSH_ASKPASS", "false"),
    ];
    assert_eq!(theirs, expected.map(|(n, v)| (n.into(), v.into())));
}
