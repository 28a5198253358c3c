//! Which jobs' derivations are built from which: found in the derivations' own files, through whatever is no job.
//!
//! A job needs the nearest jobs below it: a walk stops there, as those have needs of their own. Which they are is known
//! when all jobs are. Until then most of what a job is built from may be jobs to come, so that a walk would find half of
//! the evaluation; it looks a little way only.
//!
//! Invariant: each file is read once for an evaluation, and what is kept and walked is bounded; past a bound, or where a
//! file cannot be read, needs are missing, which costs order and nothing else: a store daemon builds whatever it lacks.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use crate::model::job::{NewJob, Work};
use crate::proto::drv;
use crate::sys::file;

/// Derivations that are looked at: four times those of all that Nixpkgs has for one system.
const MAX_NODES: usize = 1_000_000;

/// Inputs that are kept: ten for each derivation, as is usual, at four bytes.
const MAX_EDGES: usize = 10_000_000;

/// Bytes of files that are read: as many as that many derivations have.
const MAX_BYTES: u64 = 4 << 30;

/// Inputs that walks pass over: seconds, of the hours that an evaluation of that size takes.
const MAX_STEPS: u64 = 500_000_000;

/// Needs that are told: each may be a row in the books.
const MAX_NEEDS: usize = 4_000_000;

/// Inputs that a walk passes over while there are jobs to come: a job's own, and some of theirs.
const EARLY: u64 = 64;

/// Needs that are told at once: milliseconds for the books.
const CHUNK: usize = 4_000;

/// That a derivation is built from another, both jobs of the evaluation.
pub(crate) type Need = (Arc<str>, Arc<str>);

/// Whether `path` is the name of a derivation's file in one of these stores.
pub(crate) fn is_in(stores: &[String], path: &str) -> bool {
    path.strip_suffix(".drv")
        .and_then(|path| path.rsplit_once('/'))
        .is_some_and(|(directory, _)| stores.iter().any(|store| store == directory))
}

/// The derivations of one evaluation.
#[derive(Default)]
pub(crate) struct Inputs {
    /// Directories of the stores: nothing elsewhere is opened, whatever derivations name.
    stores: Vec<String>,
    names: HashMap<Arc<str>, u32>,
    nodes: Vec<Node>,
    /// In the order in which they came.
    jobs: Vec<u32>,
    /// How many jobs there were when all were walked from last.
    walked: usize,
    edges: usize,
    bytes: u64,
    steps: u64,
    needs: usize,
    /// Number of the walk under way: a node that bears it was seen.
    walk: u32,
    /// Why needs are missing, until it has been said.
    trouble: Option<String>,
    said: bool,
    /// No more needs are looked for.
    over: bool,
}

struct Node {
    name: Arc<str>,
    inputs: Box<[u32]>,
    /// What has it among its inputs.
    users: Vec<u32>,
    /// For a job: the needs that were told.
    told: Option<Vec<u32>>,
    /// Whether it is a job with `needs` of its own. Those and ours could close a circle, of builds that wait for each
    /// other; in every such circle one of ours leads to a job with some of its own, so that none may.
    has_own: bool,
    /// Whether any job is below it.
    leads: bool,
    seen: u32,
}

impl Node {
    fn is_job(&self) -> bool {
        self.told.is_some()
    }
}

impl Inputs {
    pub(crate) fn new(stores: Vec<String>) -> Self {
        Self { stores, ..Self::default() }
    }

    /// Takes jobs that are about to be registered, and adds to their needs the jobs among these and earlier ones.
    pub(crate) fn add(&mut self, jobs: &mut [NewJob]) {
        let mut added = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            if job.work != Work::Derivation || self.over {
                continue;
            }
            let Some(node) = self.load(&job.derivation) else { return };
            if !job.needs.is_empty() && !self.nodes[node as usize].has_own {
                if self.nodes[node as usize].is_job() {
                    // Others may have been told to need it.
                    self.give_up("a derivation is two jobs, one of them with `needs`".to_owned());
                    return;
                }
                self.nodes[node as usize].has_own = true;
            }
            added.push((index, node));
            self.mark(node);
        }
        for (index, node) in added {
            let needs = self.untold(node, EARLY);
            let names = needs.iter().map(|need| self.nodes[*need as usize].name.to_string());
            let names: Vec<_> = names.filter(|name| !jobs[index].needs.contains(name)).collect();
            jobs[index].needs.extend(names);
        }
    }

    /// Tells needs of jobs that were registered before what they need: now and then, or, with `all`, for the last time.
    pub(crate) fn late<E>(
        &mut self,
        all: bool,
        mut tell: impl FnMut(Vec<Need>) -> Result<(), E>,
    ) -> Result<(), E> {
        // Whenever there are twice as many jobs, so that all walks together are not much longer than the last.
        if !all && self.jobs.len() < 2 * self.walked.max(1) {
            return Ok(());
        }
        self.walked = self.jobs.len();
        let mut found = Vec::new();
        for source in self.jobs.clone() {
            for need in self.untold(source, if all { u64::MAX } else { EARLY }) {
                let name = |node: u32| Arc::clone(&self.nodes[node as usize].name);
                found.push((name(source), name(need)));
            }
            if self.over {
                break;
            }
            if found.len() >= CHUNK {
                tell(std::mem::take(&mut found))?;
            }
        }
        if found.is_empty() { Ok(()) } else { tell(found) }
    }

    /// Why needs are missing; said once.
    pub(crate) fn trouble(&mut self) -> Option<String> {
        let trouble = self.trouble.take()?;
        (!std::mem::replace(&mut self.said, true)).then_some(trouble)
    }

    fn give_up(&mut self, why: String) {
        self.over = true;
        self.trouble.get_or_insert(why);
        (self.names, self.nodes, self.jobs) = (HashMap::new(), Vec::new(), Vec::new());
    }

    /// The node of a derivation, all that it is built from included.
    fn load(&mut self, name: &str) -> Option<u32> {
        if let Some(&known) = self.names.get(name) {
            return Some(known);
        }
        let root = self.insert(name)?;
        // Inputs are inserted as they are met; their own are read in any order.
        let mut unread = vec![root];
        while let Some(node) = unread.pop() {
            let name = Arc::clone(&self.nodes[node as usize].name);
            let mut inputs = Vec::new();
            for input in self.read(&name) {
                let (input, is_new) = match self.names.get(input.as_str()) {
                    Some(&known) => (known, false),
                    None => (self.insert(&input)?, true),
                };
                if is_new {
                    unread.push(input);
                }
                inputs.push(input);
                self.nodes[input as usize].users.push(node);
            }
            self.edges += inputs.len();
            if self.edges > MAX_EDGES || self.bytes > MAX_BYTES {
                self.give_up("its derivations are built from too many others".to_owned());
                return None;
            }
            let leads = |input: &u32| {
                let input = &self.nodes[*input as usize];
                input.is_job() || input.leads
            };
            let leads = inputs.iter().any(leads);
            self.nodes[node as usize].inputs = inputs.into();
            if leads {
                self.lead(node);
            }
        }
        Some(root)
    }

    fn insert(&mut self, name: &str) -> Option<u32> {
        let number = u32::try_from(self.nodes.len()).ok().filter(|_| self.nodes.len() < MAX_NODES);
        let Some(number) = number else {
            self.give_up("its derivations are built from too many others".to_owned());
            return None;
        };
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name), number);
        let (inputs, users) = (Box::default(), Vec::new());
        let (has_own, leads) = (false, false);
        self.nodes.push(Node { name, inputs, users, told: None, has_own, leads, seen: 0 });
        Some(number)
    }

    /// What a derivation is built from, as far as that can be read.
    fn read(&mut self, name: &str) -> Vec<String> {
        if !is_in(&self.stores, name) {
            self.trouble.get_or_insert(format!("{name}: is in no store that is known"));
            return Vec::new();
        }
        let text = match file::read(Path::new(name), drv::MAX) {
            Ok(text) => text,
            Err(error) => {
                self.trouble.get_or_insert(format!("{name}: {error}"));
                return Vec::new();
            }
        };
        self.bytes += text.len() as u64;
        match drv::parse(&text) {
            Ok(derivation) => derivation.inputs,
            Err(error) => {
                self.trouble.get_or_insert(format!("{name}: {error}"));
                Vec::new()
            }
        }
    }

    /// Makes a job of a node.
    fn mark(&mut self, node: u32) {
        if self.nodes[node as usize].is_job() {
            return;
        }
        self.nodes[node as usize].told = Some(Vec::new());
        self.jobs.push(node);
        for user in self.nodes[node as usize].users.clone() {
            self.lead(user);
        }
    }

    /// There is a job below `node`, and so below all that is built from it. Each node learns that once.
    fn lead(&mut self, node: u32) {
        let mut stack = vec![node];
        while let Some(node) = stack.pop() {
            let node = &mut self.nodes[node as usize];
            if !std::mem::replace(&mut node.leads, true) {
                stack.extend_from_slice(&node.users);
            }
        }
    }

    /// The nearest jobs below a job that were not told: they are now. Ends early when more than `most` inputs were
    /// passed over.
    fn untold(&mut self, job: u32, most: u64) -> Vec<u32> {
        if self.over {
            return Vec::new();
        }
        self.walk += 1;
        let mut told = self.nodes[job as usize].told.take().unwrap_or_default();
        for need in &told {
            self.nodes[*need as usize].seen = self.walk;
        }
        let (known, before) = (told.len(), self.steps);
        let mut queue = VecDeque::from([job]);
        while let Some(node) = queue.pop_front()
            && self.steps - before <= most
        {
            for index in 0..self.nodes[node as usize].inputs.len() {
                let number = self.nodes[node as usize].inputs[index];
                self.steps += 1;
                let input = &mut self.nodes[number as usize];
                if std::mem::replace(&mut input.seen, self.walk) == self.walk {
                    continue;
                }
                if input.is_job() && !input.has_own {
                    told.push(number);
                } else if input.leads {
                    queue.push_back(number);
                }
            }
        }
        let found = told[known..].to_vec();
        self.nodes[job as usize].told = Some(told);
        self.needs += found.len();
        if self.needs > MAX_NEEDS || self.steps > MAX_STEPS {
            self.give_up("its jobs need too many others".to_owned());
            return Vec::new();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A store of derivations that are nothing but their inputs.
    struct Store(TempDir);

    impl Store {
        fn new(derivations: &[(&str, &[&str])]) -> Self {
            let store = Self(tempfile::tempdir().unwrap());
            for (name, inputs) in derivations {
                store.add(name, inputs);
            }
            store
        }

        fn add(&self, name: &str, inputs: &[&str]) {
            let inputs: Vec<_> = inputs
                .iter()
                .map(|input| format!("(\"{}\",[\"out\"])", self.path(input)))
                .collect();
            let text =
                format!("Derive([],[{}],[],\"x86_64-linux\",\"/b\",[],[])", inputs.join(","));
            fs::write(self.path(name), text).unwrap();
        }

        fn inputs(&self) -> Inputs {
            Inputs::new(vec![self.0.path().to_str().unwrap().to_owned()])
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(format!("{name}.drv")).to_str().unwrap().to_owned()
        }

        fn short<'a>(&self, path: &'a str) -> &'a str {
            Path::new(path).file_stem().unwrap().to_str().unwrap()
        }

        fn jobs(&self, names: &[&str]) -> Vec<NewJob> {
            let job = |name: &&str| NewJob {
                name: (*name).to_owned(),
                system: "x86_64-linux".to_owned(),
                derivation: self.path(name),
                nix_name: String::new(),
                outputs: BTreeMap::new(),
                priority: 0,
                timeout: 0,
                max_silent_time: 0,
                work: Work::Derivation,
                needs: Vec::new(),
            };
            names.iter().map(job).collect()
        }

        /// Adds these jobs: their needs, each as `job<need`, sorted.
        fn add_jobs(&self, inputs: &mut Inputs, names: &[&str]) -> Vec<String> {
            let mut jobs = self.jobs(names);
            inputs.add(&mut jobs);
            let pairs = jobs.iter().flat_map(|job| {
                job.needs.iter().map(|need| format!("{}<{}", job.name, self.short(need)))
            });
            sorted(pairs)
        }

        fn late(&self, inputs: &mut Inputs, all: bool) -> Vec<String> {
            let mut late = Vec::new();
            inputs
                .late(all, |needs| {
                    late.extend(needs);
                    Ok::<_, ()>(())
                })
                .unwrap();
            sorted(late.iter().map(|(a, b)| format!("{}<{}", self.short(a), self.short(b))))
        }
    }

    fn sorted(pairs: impl Iterator<Item = String>) -> Vec<String> {
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    }

    #[test]
    fn needs_are_found_through_what_is_no_job() {
        // a ← x ← b ← c, and c is built from y, too, which leads nowhere.
        let store = Store::new(&[
            ("a", &[]),
            ("y", &[]),
            ("x", &["a"]),
            ("b", &["x"]),
            ("c", &["b", "x", "y"]),
        ]);
        let mut inputs = store.inputs();
        // In one batch the order of lines is of no importance.
        assert_eq!(store.add_jobs(&mut inputs, &["c", "b", "a"]), ["b<a", "c<a", "c<b"]);
        assert!(store.late(&mut inputs, true).is_empty());
        assert_eq!(inputs.trouble(), None);
    }

    #[test]
    fn needs_on_later_lines_are_found_too() {
        let store = Store::new(&[("a", &[]), ("x", &["a"]), ("b", &["x"]), ("c", &["b"])]);
        let mut inputs = store.inputs();
        assert!(store.add_jobs(&mut inputs, &["c"]).is_empty());
        assert!(store.late(&mut inputs, false).is_empty());
        assert!(store.add_jobs(&mut inputs, &["a"]).is_empty());
        // The walk stops at jobs, and there was none between.
        assert_eq!(store.late(&mut inputs, false), ["c<a"]);
        assert_eq!(store.add_jobs(&mut inputs, &["b"]), ["b<a"]);
        assert!(store.late(&mut inputs, false).is_empty(), "not after every batch");
        assert_eq!(store.late(&mut inputs, true), ["c<b"]);
        assert!(store.late(&mut inputs, true).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_said_once_and_stops_nothing() {
        let store = Store::new(&[("a", &[]), ("b", &["gone", "a"])]);
        fs::write(store.path("text"), "no derivation").unwrap();
        let mut inputs = store.inputs();
        assert_eq!(store.add_jobs(&mut inputs, &["a", "text", "b"]), ["b<a"]);
        let trouble = inputs.trouble().unwrap();
        assert!(trouble.contains("text.drv: no derivation"), "{trouble}");
        store.add_jobs(&mut inputs, &["missing"]);
        assert_eq!(inputs.trouble(), None);
    }

    #[test]
    fn what_is_in_no_store_is_not_opened() {
        let (store, elsewhere) = (Store::new(&[]), Store::new(&[("a", &[]), ("b", &["a"])]));
        let mut inputs = store.inputs();
        assert!(elsewhere.add_jobs(&mut inputs, &["a", "b"]).is_empty());
        let trouble = inputs.trouble().unwrap();
        assert!(trouble.ends_with("a.drv: is in no store that is known"), "{trouble}");
        let stores = ["/gnu/store".to_owned()];
        assert!(is_in(&stores, "/gnu/store/x-y.drv"));
        for path in ["/gnu/store/x/y.drv", "/dev/x.drv", "/gnu/store/x", "x.drv"] {
            assert!(!is_in(&stores, path), "{path}");
        }
    }

    #[test]
    fn needs_of_its_own_and_found_ones_close_no_circle() {
        // c is built from b, which is built from a and says that it needs c.
        let store = Store::new(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("d", &["c"])]);
        let mut inputs = store.inputs();
        let mut jobs = store.jobs(&["a", "b"]);
        jobs[1].needs = vec![store.path("c")];
        inputs.add(&mut jobs);
        assert_eq!(jobs[1].needs, [store.path("c"), store.path("a")]);
        // The search goes on, and through b.
        assert_eq!(store.add_jobs(&mut inputs, &["c", "d"]), ["c<a", "d<c"]);
        assert!(store.late(&mut inputs, true).is_empty());
        assert_eq!(inputs.trouble(), None);
    }

    /// As in Nixpkgs: everything is built from a common core that is no job, and from some of what came before.
    #[test]
    fn a_large_evaluation_reads_each_file_once() {
        const CORE: usize = 300;
        const JOBS: usize = 3_000;
        let store = Store::new(&[]);
        let name = |kind: &str, n: usize| format!("{kind}{n}");
        for n in 0..CORE {
            let inputs: Vec<_> = (n.saturating_sub(8)..n).map(|n| name("core", n)).collect();
            store.add(&name("core", n), &inputs.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let mut random = fastrand::Rng::with_seed(3);
        for n in 0..JOBS {
            let mut inputs = vec![name("core", CORE - 1), name("source", n)];
            inputs.extend((0..8.min(n)).map(|_| name("job", random.usize(0..n))));
            store.add(&name("source", n), &["core9"]);
            store.add(&name("job", n), &inputs.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let mut order: Vec<_> = (0..JOBS).map(|n| name("job", n)).collect();
        random.shuffle(&mut order);
        let mut inputs = store.inputs();
        let mut needs = 0;
        for batch in order.chunks(7) {
            let batch: Vec<_> = batch.iter().map(String::as_str).collect();
            needs += store.add_jobs(&mut inputs, &batch).len();
            needs += store.late(&mut inputs, false).len();
        }
        needs += store.late(&mut inputs, true).len();
        assert_eq!(inputs.nodes.len(), CORE + 2 * JOBS);
        let direct: usize = inputs
            .jobs
            .iter()
            .map(|job| {
                let all = &inputs.nodes[*job as usize].inputs;
                let jobs = all.iter().filter(|input| inputs.nodes[**input as usize].is_job());
                jobs.collect::<std::collections::HashSet<_>>().len()
            })
            .sum();
        assert!((direct..20 * direct).contains(&needs), "{needs}, {direct} of them direct");
        assert!(inputs.steps < 100 * direct as u64, "{} steps, {direct} needs", inputs.steps);
    }
}
