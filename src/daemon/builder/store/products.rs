//! What specifications ask for of outputs: files that are recorded as products of a build.
//!
//! A build looks for its own when it has succeeded. For builds that had succeeded before a job pointed to them, or before
//! a specification asked, a thread does.
//!
//! Invariant: a product is a file or directory of the store, whatever links a build put into its output.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};

use crate::actor::{Gone, Spawner, Stop};
use crate::daemon::builder::measure::{self, GoOn};
use crate::db::wanted::{self, Pointer};
use crate::db::{Database, Error, Reader, builds, jobsets};
use crate::model::build::{BuildId, Product, Store};
use crate::model::error::chain;
use crate::model::spec::{BuildOutput, JobsetName};
use crate::proto::pattern::Pattern;
use crate::spec;
use crate::store::{self, Dialect};

/// Messages that wait: batches of several evaluations, and specifications.
const INBOX: usize = 256;

/// What each jobset asks for, read from its specification whenever that changes.
#[derive(Default)]
pub(super) struct Wishes(HashMap<JobsetName, (String, Vec<(Pattern, BuildOutput)>)>);

impl Wishes {
    /// What is asked for of a build, whichever jobset does.
    pub(super) fn of(
        &mut self,
        reader: &Reader,
        build: BuildId,
    ) -> Result<Vec<BuildOutput>, Error> {
        let mut all: Vec<BuildOutput> = Vec::new();
        for Pointer { jobset, specification, job } in wanted::jobs(reader, build)? {
            for wish in self.stated(&jobset, specification, &job) {
                if !all.contains(&wish) {
                    all.push(wish);
                }
            }
        }
        Ok(all)
    }

    fn for_job(
        &mut self,
        reader: &Reader,
        jobset: &JobsetName,
        job: &str,
    ) -> Result<Vec<BuildOutput>, Error> {
        let Some(found) = jobsets::get(reader, jobset)? else { return Ok(Vec::new()) };
        Ok(self.stated(jobset, found.specification, job))
    }

    fn stated(
        &mut self,
        jobset: &JobsetName,
        specification: String,
        job: &str,
    ) -> Vec<BuildOutput> {
        let known = self.0.get(jobset).is_some_and(|(text, _)| *text == specification);
        if !known {
            let outputs = spec::json::parse(&specification).unwrap_or_default();
            let outputs = outputs.into_iter().flat_map(|specification| specification.build_outputs);
            let wishes = outputs.filter_map(|wish| Some((Pattern::new(&wish.job)?, wish)));
            self.0.insert(jobset.clone(), (specification, wishes.collect()));
        }
        let wishes = self.0.get(jobset).into_iter().flat_map(|(_, wishes)| wishes);
        wishes.filter(|(job_, _)| job_.matches(job)).map(|(_, wish)| wish.clone()).collect()
    }
}

/// Looks for what is asked for in a build's outputs; what is missing is told.
pub(super) fn collect(
    store: &str,
    outputs: &BTreeMap<String, String>,
    wishes: &[BuildOutput],
    go_on: GoOn<'_>,
    mut tell: impl FnMut(&str),
) -> io::Result<Vec<Product>> {
    let mut products: Vec<Product> = Vec::new();
    for wish in wishes {
        let Some(output) = outputs.get(&wish.output) else {
            tell(&format!("there is no output {:?}, of which a product is wanted", wish.output));
            continue;
        };
        let path = match wish.path.as_str() {
            "" => output.into(),
            path => Path::new(output).join(path),
        };
        if products.iter().any(|product| product.path == path) {
            continue;
        }
        match measured(store, &path, go_on) {
            Ok((size, sha256)) => {
                products.push(Product { kind: wish.kind.clone(), path, size, sha256 });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => tell(&format!("no product {}: {error}", path.display())),
        }
    }
    Ok(products)
}

fn measured(store: &str, path: &Path, go_on: GoOn<'_>) -> io::Result<(u64, Option<String>)> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let real = path.canonicalize()?;
    if !real.starts_with(Path::new(store).canonicalize()?) {
        return refuse("leads out of the store");
    }
    // A store has no other kinds: what is no directory can be opened without waiting.
    let metadata = real.symlink_metadata()?;
    if metadata.is_file() {
        let (size, sha256) = measure::hash(&mut File::open(&real)?, None, go_on)?;
        Ok((size, Some(sha256)))
    } else if metadata.is_dir() {
        Ok((measure::tree_size(&real, go_on)?, None))
    } else {
        refuse("is neither a file nor a directory")
    }
}

enum Message {
    /// They had succeeded before a job pointed to them.
    Reused(Vec<BuildId>),
    /// Its specification is new.
    Jobset(JobsetName),
}

/// Whom to tell.
#[derive(Clone)]
pub(crate) struct Products {
    inbox: Sender<Message>,
}

impl Products {
    pub(super) fn reused(&self, builds: &[BuildId]) {
        if !builds.is_empty() {
            self.send(Message::Reused(builds.to_vec()));
        }
    }

    pub(super) fn jobset(&self, name: &JobsetName) {
        self.send(Message::Jobset(name.clone()));
    }

    fn send(&self, message: Message) {
        if self.inbox.try_send(message).is_err() {
            log::warn!(target: "builder", "too many builds are looked for products in; some have none until their jobset is evaluated again");
        }
    }
}

/// Starts the thread `products/guix` or `products/nix`.
pub(super) fn spawn(
    threads: &Spawner,
    dialect: Dialect,
    database: Database,
) -> io::Result<Products> {
    let (inbox, messages) = bounded(INBOX);
    let (name, store) = match dialect {
        Dialect::Guix => ("products/guix", Store::Guix),
        Dialect::Nix => ("products/nix", Store::Nix),
    };
    let directory = store::directory(dialect);
    threads.essential(name, move |stop| {
        let wishes = Wishes::default();
        let mut late = Late { store, directory, database, reader: None, wishes };
        run(&mut late, &messages, &stop)
    })?;
    Ok(Products { inbox })
}

fn run(late: &mut Late, messages: &Receiver<Message>, stop: &Stop) -> Result<(), Gone> {
    loop {
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(messages) -> message => {
                if let Err(error) = late.take(message?, stop) {
                    log::warn!(target: "builder", "products were not recorded: {}", chain(&error));
                }
            }
        }
    }
}

/// The thread's own.
struct Late {
    store: Store,
    directory: String,
    database: Database,
    reader: Option<Reader>,
    wishes: Wishes,
}

impl Late {
    fn take(&mut self, message: Message, stop: &Stop) -> Result<(), Error> {
        if self.reader.is_none() {
            self.reader = Some(self.database.reader()?);
        }
        let Some(reader) = &self.reader else { return Ok(()) };
        let mut found: Vec<(BuildId, Vec<BuildOutput>)> = Vec::new();
        match message {
            Message::Reused(builds) => {
                for id in builds {
                    found.push((id, self.wishes.of(reader, id)?));
                }
            }
            Message::Jobset(name) => {
                for (id, job) in wanted::newest(reader, &name)? {
                    found.push((id, self.wishes.for_job(reader, &name, &job)?));
                }
            }
        }
        found.retain(|(_, wishes)| !wishes.is_empty());
        let go_on = || match stop.try_recv() {
            Err(TryRecvError::Disconnected) => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(()),
        };
        for (id, wishes) in found {
            let derivations = wanted::derivations(reader, &[id])?;
            if derivations.iter().all(|build| Store::of(&build.derivation) != self.store) {
                continue;
            }
            let known = wanted::products(reader, id)?;
            let mut outputs = builds::outputs(reader, id)?;
            outputs.retain(|_, path| path.starts_with(&self.directory));
            let missing: Vec<_> = wishes
                .into_iter()
                .filter(|wish| {
                    let file = |path: &String| Path::new(path).join(&wish.path);
                    let path = outputs.get(&wish.output).map(file);
                    path.is_some_and(|path| !known.iter().any(|known| Path::new(known) == path))
                })
                .collect();
            let Ok(products) = collect(&self.directory, &outputs, &missing, &go_on, |why| {
                log::info!(target: "builder", "build {id}: {why}");
            }) else {
                return Ok(()); // The daemon stops.
            };
            if !products.is_empty() {
                self.database
                    .write("record products", move |tx| wanted::add_products(tx, id, &products))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn products_are_files_and_directories_of_the_store() {
        let place = tempfile::tempdir().unwrap();
        let store = place.path().join("store");
        fs::create_dir_all(store.join("a-x/share")).unwrap();
        fs::write(store.join("a-x/share/image"), "12345").unwrap();
        symlink("share/image", store.join("a-x/latest")).unwrap();
        fs::write(place.path().join("secret"), "secret").unwrap();
        symlink("../../secret", store.join("a-x/out")).unwrap();
        let outputs = [("out".to_owned(), store.join("a-x").to_str().unwrap().to_owned())];
        let wish = |output: &str, path: &str| BuildOutput {
            job: String::new(),
            kind: "archive".to_owned(),
            output: output.to_owned(),
            path: path.to_owned(),
        };
        let wishes = [
            wish("out", ""),
            wish("out", "share/image"),
            wish("out", "latest"),
            wish("out", "latest"),
            wish("out", "out"),
            wish("out", "none"),
            wish("doc", ""),
        ];
        let mut told = Vec::new();
        let tell = |why: &str| told.push(why.to_owned());
        let found =
            collect(store.to_str().unwrap(), &outputs.into(), &wishes, &|| Ok(()), tell).unwrap();
        let sizes: Vec<_> = found.iter().map(|product| product.size).collect();
        assert_eq!(sizes, [5, 5, 5]);
        assert_eq!(found[0].sha256, None);
        let sum = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5";
        assert_eq!(found[1].sha256.as_deref(), Some(sum));
        assert_eq!(found[2].path, store.join("a-x/latest"));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("leads out of the store"), "{told:?}");
    }
}
