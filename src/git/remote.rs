//! Looking at and fetching from repositories over git, HTTP and SSH.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::catch_unwind;

use git2::{
    AutotagOption, Direction, ErrorCode, FetchOptions, Oid, ProxyOptions, RemoteCallbacks,
    RemoteConnection, Repository,
};

use super::credentials::Credentials;
use super::mirror::{clear_leftovers, has};
use super::session::Session;
use super::trouble::Trouble;
use super::url::Url;
use crate::model::spec::Reference;

/// What a mirror mirrors. Tags are asked for by themselves, not as an appendix to branches.
const REFSPECS: [&str; 2] = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];

/// Brings a HEAD that is on no branch.
const HEAD: &str = "+HEAD:refs/gorget/HEAD";

/// The other side's references as it announces them.
struct Listing(HashMap<String, Oid>);

impl Listing {
    fn read(connection: &RemoteConnection<'_, '_, '_>) -> Result<Self, git2::Error> {
        let heads = connection.list()?.iter();
        // `name` panics on a name that is not UTF-8; no specification can mean such a one.
        let named = heads.filter_map(|head| {
            let name = catch_unwind(std::panic::AssertUnwindSafe(|| head.name().to_owned()));
            Some((name.ok()?, head.oid()))
        });
        Ok(Self(named.collect()))
    }

    fn resolve(&self, reference: &Reference) -> Result<Oid, Trouble> {
        let find = |name: &str| self.0.get(name).copied();
        match reference {
            Reference::Head => find("HEAD").ok_or(Trouble::NoHead),
            Reference::Branch(name) => {
                find(&format!("refs/heads/{name}")).ok_or_else(|| Trouble::NoBranch(name.clone()))
            }
            Reference::Tag(name) => {
                find(&format!("refs/tags/{name}")).ok_or_else(|| Trouble::NoTag(name.clone()))
            }
            Reference::Commit(id) => Oid::from_str(id).map_err(|_| Trouble::NoCommit(id.clone())),
        }
    }

    fn mirrored(&self) -> impl Iterator<Item = (&str, Oid)> {
        let ours = |name: &str| is_mirrored(name) && !name.ends_with("^{}");
        self.0.iter().map(|(name, id)| (name.as_str(), *id)).filter(move |(name, _)| ours(name))
    }
}

fn is_mirrored(name: &str) -> bool {
    name.starts_with("refs/heads/") || name.starts_with("refs/tags/")
}

/// Resolves `references` to objects, and sees to it that the mirror has those that exist.
pub(super) fn look(
    session: &Session,
    url: &Url,
    mirror: &Repository,
    references: &[Reference],
) -> Result<Vec<Result<Oid, Trouble>>, Trouble> {
    session.prepare(url);
    // Anonymous, so that a URL with a password is written nowhere.
    let mut remote = mirror.remote_anonymous(url.secret()).map_err(Trouble::Connect)?;
    let credentials = RefCell::new(Credentials::new(url));
    let callbacks = callbacks(session, &credentials);
    let mut connection = remote
        .connect_auth(Direction::Fetch, Some(callbacks), Some(proxy()))
        .map_err(Trouble::Connect)?;
    session.tick();
    let listing = Listing::read(&connection).map_err(Trouble::Connect)?;
    let mut tips: Vec<_> = references.iter().map(|reference| listing.resolve(reference)).collect();
    let missing = |tip: &Result<Oid, Trouble>| tip.as_ref().is_ok_and(|id| !has(mirror, *id));
    if tips.iter().any(missing) {
        session.fetches.set(session.fetches.get() + 1);
        clear_leftovers(mirror);
        let mut specs = REFSPECS.to_vec();
        let head = listing.0.get("HEAD").filter(|_| references.contains(&Reference::Head));
        if head.is_some_and(|head| !listing.mirrored().any(|(_, id)| id == *head)) {
            specs.push(HEAD);
        }
        let mut options = options(session, &credentials);
        connection.remote().download(&specs, Some(&mut options)).map_err(Trouble::of_fetch)?;
        update(mirror, &listing).map_err(Trouble::of_fetch)?;
    }
    drop(connection);
    for (tip, reference) in tips.iter_mut().zip(references) {
        if let Reference::Commit(id) = reference
            && missing(tip)
        {
            *tip = by_id(session, url, mirror, id);
        }
    }
    Ok(tips)
}

/// Asks for a commit that no branch or tag leads to; servers may know it all the same, and give it.
fn by_id(session: &Session, url: &Url, mirror: &Repository, id: &str) -> Result<Oid, Trouble> {
    // A connection of its own: a server that refuses may hang up.
    let mut remote = mirror.remote_anonymous(url.secret()).map_err(Trouble::Connect)?;
    let credentials = RefCell::new(Credentials::new(url));
    let asked = remote.download(&[id], Some(&mut options(session, &credentials)));
    // However it says no: the connection before this one worked, so the commit is the matter.
    let got = asked.and_then(|()| Oid::from_str(id)).ok().filter(|id| has(mirror, *id));
    got.ok_or_else(|| Trouble::NoCommit(id.to_owned()))
}

/// Makes the mirror's branches and tags those of the other side. They serve to tell it next time what we have.
fn update(mirror: &Repository, listing: &Listing) -> Result<(), git2::Error> {
    let mut present = HashMap::new();
    for reference in mirror.references()? {
        let mut reference = reference?;
        let Ok(name) = reference.name().map(str::to_owned) else { continue };
        if !is_mirrored(&name) {
            continue;
        }
        if listing.0.contains_key(&name) {
            present.extend(reference.target().map(|target| (name, target)));
        } else {
            // Before any is created: a branch `a` may have made way for `a/b`.
            reference.delete()?;
        }
    }
    for (name, id) in listing.mirrored() {
        if present.get(name) == Some(&id) || !has(mirror, id) {
            continue;
        }
        match mirror.reference(name, id, true, "") {
            Ok(_) => {}
            // A name that only other implementations take: it will not be mirrored.
            Err(error) if error.code() == ErrorCode::InvalidSpec => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn options<'a>(session: &'a Session, credentials: &'a RefCell<Credentials>) -> FetchOptions<'a> {
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks(session, credentials))
        .proxy_options(proxy())
        .download_tags(AutotagOption::None)
        // It would hold the URL.
        .update_fetchhead(false);
    options
}

fn callbacks<'a>(
    session: &'a Session,
    credentials: &'a RefCell<Credentials>,
) -> RemoteCallbacks<'a> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks
        .credentials(|asking, user, allowed| {
            session.tick();
            credentials.borrow_mut().next(asking, user, allowed)
        })
        .transfer_progress(|_| {
            session.tick();
            true
        })
        .sideband_progress(|_| {
            session.tick();
            true
        });
    callbacks
}

fn proxy<'a>() -> ProxyOptions<'a> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}
