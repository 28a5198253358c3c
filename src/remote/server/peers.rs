//! Which connection a message came over: pure.
//!
//! libzmq's ROUTER tells of no peer that is lost. Its monitor tells of descriptors alone, and each message of the descriptor
//! and the identity it came with: joined here. Descriptors are given again, and what a connection sent is read after its
//! end was told, so that a descriptor alone does not say which connection a message is of; an identity does.
//!
//! Invariant: a [`Link`] is one connection, never used twice, and open from `accepted` to `disconnected`.

use std::collections::HashMap;
use std::net::IpAddr;

/// The number of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Link(pub(super) u64);

/// Bytes that a connection may have sent before its first message is read: libzmq bounds frames and whole messages, but one
/// message may have frames without end, of which nothing is told until that comes.
const UNREAD: u64 = 256 * 1024;

/// Bytes of what libzmq says by itself between two surveys, many times over.
const HEARTBEATS: u64 = 256;

/// What ROUTER calls a peer: five bytes of its own, or what the peer says.
pub(super) type Identity = Box<[u8]>;

#[derive(Debug)]
struct Open {
    link: Link,
    address: IpAddr,
    /// Known from its first message on.
    identity: Option<Identity>,
    /// Bytes of the messages that it sent.
    read: u64,
    surveys: u64,
    /// One that claimed the descriptor with what it had sent before its end.
    former: Option<Identity>,
}

/// Something that became known of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Opened(Link, IpAddr),
    Closed(Link),
}

#[derive(Default)]
pub(super) struct Peers {
    open: HashMap<i32, Open>,
    /// The descriptors of those that have said something.
    descriptors: HashMap<Link, i32>,
    next: u64,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn accepted(&mut self, descriptor: i32, address: IpAddr, news: &mut Vec<News>) {
        self.disconnected(descriptor, news);
        let link = self.number();
        news.push(News::Opened(link, address));
        self.descriptors.insert(link, descriptor);
        self.open.insert(
            descriptor,
            Open { link, address, identity: None, read: 0, surveys: 0, former: None },
        );
    }

    pub(super) fn disconnected(&mut self, descriptor: i32, news: &mut Vec<News>) {
        if let Some(open) = self.open.remove(&descriptor) {
            self.descriptors.remove(&open.link);
            news.push(News::Closed(open.link));
        }
    }

    /// The connection of a message, `None` if it has ended since. All that the monitor told until the message was
    /// read must have been told here.
    pub(super) fn sender(
        &mut self,
        identity: &[u8],
        descriptor: i32,
        news: &mut Vec<News>,
    ) -> Option<Link> {
        let open = self.open.get_mut(&descriptor)?;
        match &open.identity {
            Some(known) if **known == *identity => return Some(open.link),
            None => {
                open.identity = Some(identity.into());
                return Some(open.link);
            }
            Some(_) => {}
        }
        if open.former.as_deref() == Some(identity) {
            return None;
        }
        // Whoever spoke for it so far had ended before it began.
        let (old, address) = (open.link, open.address);
        self.descriptors.remove(&old);
        news.push(News::Closed(old));
        let link = self.number();
        news.push(News::Opened(link, address));
        self.descriptors.insert(link, descriptor);
        let open = self.open.get_mut(&descriptor)?;
        (open.link, open.read) = (link, 0);
        open.former = open.identity.replace(identity.into());
        Some(link)
    }

    /// A connection has sent a message of so many bytes.
    pub(super) fn count(&mut self, link: Link, bytes: usize) {
        if let Some(open) = self.descriptors.get(&link).and_then(|d| self.open.get_mut(d)) {
            open.read += u64::try_from(bytes).unwrap_or(u64::MAX);
        }
    }

    /// All that are open, with the descriptor and how many bytes each may have received by now; asked every few seconds.
    pub(super) fn survey(&mut self) -> impl Iterator<Item = (Link, i32, u64)> {
        self.open.iter_mut().map(|(descriptor, open)| {
            open.surveys += 1;
            (open.link, *descriptor, UNREAD + 2 * open.read + HEARTBEATS * open.surveys)
        })
    }

    /// How many come from an address.
    pub(super) fn of(&self, address: IpAddr) -> usize {
        self.open.values().filter(|open| open.address == address).count()
    }

    /// Where to send what is for a connection.
    pub(super) fn identity(&self, link: Link) -> Option<&[u8]> {
        let (_, open) = self.find(link)?;
        open.identity.as_deref()
    }

    /// The descriptor of a connection and the address at its other end.
    pub(super) fn descriptor(&self, link: Link) -> Option<(i32, IpAddr)> {
        let (descriptor, open) = self.find(link)?;
        Some((descriptor, open.address))
    }

    fn find(&self, link: Link) -> Option<(i32, &Open)> {
        let descriptor = *self.descriptors.get(&link)?;
        Some((descriptor, self.open.get(&descriptor)?))
    }

    fn number(&mut self) -> Link {
        self.next += 1;
        Link(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn news(act: impl FnOnce(&mut Vec<News>)) -> Vec<News> {
        let mut news = Vec::new();
        act(&mut news);
        news
    }

    #[test]
    fn messages_are_of_the_connection_that_sent_them() {
        let mut peers = Peers::default();
        assert_eq!(news(|n| peers.accepted(7, HERE, n)), [News::Opened(Link(1), HERE)]);
        assert_eq!(peers.identity(Link(1)), None, "it has said nothing");
        assert_eq!(peers.sender(b"a", 7, &mut vec![]), Some(Link(1)));
        assert_eq!(peers.sender(b"a", 7, &mut vec![]), Some(Link(1)));
        assert_eq!(peers.sender(b"b", 8, &mut vec![]), None, "nothing is known of it");
        assert_eq!(peers.identity(Link(1)), Some(b"a".as_slice()));
        assert_eq!(peers.descriptor(Link(1)), Some((7, HERE)));
        assert_eq!(news(|n| peers.disconnected(7, n)), [News::Closed(Link(1))]);
        assert_eq!(news(|n| peers.disconnected(7, n)), []);
        assert_eq!(peers.sender(b"a", 7, &mut vec![]), None, "sent before its end");
        assert_eq!((peers.len(), peers.identity(Link(1))), (0, None));
    }

    #[test]
    fn what_is_read_late_is_not_taken_for_its_successors() {
        let mut peers = Peers::default();
        peers.accepted(7, HERE, &mut vec![]);
        peers.sender(b"a", 7, &mut vec![]);
        // Its end and the next one's begin are told together.
        peers.disconnected(7, &mut vec![]);
        peers.accepted(7, HERE, &mut vec![]);
        // What a connection that never spoke had sent is taken for the next one's at first, until that speaks.
        assert_eq!(peers.sender(b"a", 7, &mut vec![]), Some(Link(2)));
        let told = news(|n| assert_eq!(peers.sender(b"b", 7, n), Some(Link(3))));
        assert_eq!(told, [News::Closed(Link(2)), News::Opened(Link(3), HERE)]);
        assert_eq!(peers.sender(b"a", 7, &mut vec![]), None);
        assert_eq!(peers.sender(b"b", 7, &mut vec![]), Some(Link(3)));
        assert_eq!(peers.identity(Link(3)), Some(b"b".as_slice()));
    }

    #[test]
    fn who_is_read_may_send_more() {
        let mut peers = Peers::default();
        peers.accepted(7, HERE, &mut vec![]);
        let link = peers.sender(b"a", 7, &mut vec![]).unwrap();
        let mut allowed = || peers.survey().next().map(|(_, _, bytes)| bytes).unwrap();
        let (first, second) = (allowed(), allowed());
        assert!(first > UNREAD && second > first);
        peers.count(link, 1000);
        assert!(peers.survey().next().unwrap().2 >= second + 2000);
    }

    #[test]
    fn an_end_that_was_missed_is_told() {
        let mut peers = Peers::default();
        peers.accepted(7, HERE, &mut vec![]);
        let told = news(|n| peers.accepted(7, HERE, n));
        assert_eq!(told, [News::Closed(Link(1)), News::Opened(Link(2), HERE)]);
    }
}
