//! What is still wanted of the stores: derivations of builds that are not over, outputs of every active jobset's last
//! succeeded evaluation, and what specifications ask for of outputs.

use rusqlite::{Connection, params};

use super::builds;
use super::{Error, Tx};
use crate::model::build::{BuildId, Product};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// A build of a derivation.
pub(crate) struct Derivation {
    pub(crate) id: BuildId,
    pub(crate) derivation: String,
    pub(crate) status: BuildStatus,
}

/// Those of `ids` that are builds of derivations.
pub(crate) fn derivations(conn: &Connection, ids: &[BuildId]) -> Result<Vec<Derivation>, Error> {
    let mut statement = conn
        .prepare_cached("SELECT id, derivation, status FROM builds WHERE id = ?1 AND kind = 1")?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            let (id, derivation, status) = (row.get(0)?, row.get(1)?, row.get(2)?);
            found.push(Derivation { id, derivation, status });
        }
    }
    Ok(found)
}

/// Derivations of all builds that are not over.
pub(crate) fn pending(conn: &Connection) -> Result<Vec<String>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT derivation FROM builds WHERE status < 0 AND kind = 1")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Outputs of derivations that builds which are not over need.
pub(crate) fn needed(conn: &Connection) -> Result<Vec<String>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT o.path FROM builds p CROSS JOIN dependencies d ON d.source = p.id
         CROSS JOIN builds t ON t.id = d.target CROSS JOIN outputs o ON o.build = t.id
         WHERE p.status < 0 AND t.status = 0 AND t.kind = 1",
    )?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds of derivations that succeeded, of every active jobset's last succeeded evaluation.
pub(crate) fn succeeded(conn: &Connection) -> Result<Vec<BuildId>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT j.build FROM jobsets s CROSS JOIN jobs j ON j.evaluation =
             (SELECT max(e.id) FROM evaluations e WHERE e.jobset = s.name AND e.status = 0)
         CROSS JOIN builds b ON b.id = j.build
         WHERE s.active AND b.kind = 1 AND b.status = 0",
    )?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether `path` is an output of such a build.
pub(crate) fn is_output(conn: &Connection, path: &str) -> Result<bool, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM outputs p CROSS JOIN jobs j ON j.build = p.build
         CROSS JOIN evaluations e ON e.id = j.evaluation CROSS JOIN jobsets s ON s.name = e.jobset
         WHERE p.path = ?1 AND s.active AND e.id =
             (SELECT max(n.id) FROM evaluations n WHERE n.jobset = s.name AND n.status = 0))",
    )?;
    Ok(statement.query_row([path], |row| row.get(0))?)
}

/// A job that points to a build, and the specification of its jobset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) jobset: JobsetName,
    pub(crate) specification: String,
    pub(crate) job: String,
}

/// Jobs that point to a build, each once for a jobset.
pub(crate) fn jobs(conn: &Connection, id: BuildId) -> Result<Vec<Pointer>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT s.name, s.specification, j.name FROM
             (SELECT DISTINCT jobset, name FROM jobs WHERE build = ?1) j
         CROSS JOIN jobsets s ON s.id = j.jobset",
    )?;
    let rows = statement.query_map([id], |row| {
        Ok(Pointer { jobset: row.get(0)?, specification: row.get(1)?, job: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds of derivations that succeeded, of a jobset's newest evaluation and of its last succeeded one, with the names of
/// their jobs.
pub(crate) fn newest(
    conn: &Connection,
    jobset: &JobsetName,
) -> Result<Vec<(BuildId, String)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT j.build, j.name FROM jobs j CROSS JOIN builds b ON b.id = j.build
         WHERE j.evaluation IN
             (SELECT max(e.id) FROM evaluations e WHERE e.jobset = ?1
              UNION SELECT max(e.id) FROM evaluations e WHERE e.jobset = ?1 AND e.status = 0)
         AND b.kind = 1 AND b.status = 0",
    )?;
    let rows = statement.query_map([jobset], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Files that are recorded as products of a build.
pub(crate) fn products(conn: &Connection, id: BuildId) -> Result<Vec<String>, Error> {
    let mut statement = conn.prepare_cached("SELECT path FROM products WHERE build = ?1")?;
    let rows = statement.query_map([id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Records further products of a build that succeeded.
pub(crate) fn add_products(
    tx: &mut Tx<'_>,
    id: BuildId,
    products: &[Product],
) -> Result<(), Error> {
    let succeeded = derivations(tx.conn, &[id])?;
    if succeeded.iter().any(|build| build.status == BuildStatus::Succeeded) {
        builds::insert_products(tx.conn, id, products)?;
    }
    Ok(())
}

/// Forgets products in store items that nothing keeps any more.
pub(crate) fn forget_products(tx: &mut Tx<'_>, items: &[String]) -> Result<(), Error> {
    for item in items {
        tx.conn
            .prepare_cached(
                "DELETE FROM products WHERE build IN (SELECT build FROM outputs WHERE path = ?1)
                 AND (path = ?1 OR substr(path, 1, length(?1) + 1) = ?1 || '/')",
            )?
            .execute(params![item])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::db::testing::{Books, job};
    use crate::db::{evaluations, jobsets};
    use crate::model::build::Outcome;
    use crate::model::evaluation::Ending;
    use crate::model::job::{NewJob, Work};

    fn derivation(name: &str) -> NewJob {
        let outputs = BTreeMap::from([("out".to_owned(), format!("/gnu/store/{name}"))]);
        NewJob {
            derivation: format!("/gnu/store/{name}.drv"),
            outputs,
            work: Work::Derivation,
            ..job(name, &[])
        }
    }

    fn build(books: &mut Books, name: &str) {
        let outputs = derivation(name).outputs;
        let done = Outcome::Succeeded { outputs, products: Vec::new() };
        books.run(&format!("/gnu/store/{name}.drv"), &done);
    }

    #[test]
    fn the_last_succeeded_evaluation_of_an_active_jobset_wants_its_outputs() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[derivation("old"), derivation("kept")]);
        assert_eq!(pending(&books.conn).unwrap().len(), 2);
        build(&mut books, "old");
        build(&mut books, "kept");
        assert!(pending(&books.conn).unwrap().is_empty());
        assert!(is_output(&books.conn, "/gnu/store/old").unwrap());
        books.evaluated(&name, &[derivation("kept"), derivation("new")]);
        // One that failed is no reason to let go of what the good one before it has.
        let failed = books.evaluation(&name);
        let ending = Ending::Failed("no".to_owned());
        books.write(|tx| evaluations::end(tx, failed, &ending, false)).unwrap();
        assert!(!is_output(&books.conn, "/gnu/store/old").unwrap());
        assert!(is_output(&books.conn, "/gnu/store/kept").unwrap());
        let kept = books.id("/gnu/store/kept.drv");
        assert_eq!(succeeded(&books.conn).unwrap(), [kept]);
        assert_eq!(newest(&books.conn, &name).unwrap(), [(kept, "kept".to_owned())]);
        let pointers = jobs(&books.conn, kept).unwrap();
        let pointers: Vec<_> = pointers.iter().map(|one| (&one.jobset, one.job.as_str())).collect();
        assert_eq!(pointers, [(&name, "kept")]);
        books.write(|tx| jobsets::set_active(tx, &name, false)).unwrap();
        assert!(!is_output(&books.conn, "/gnu/store/kept").unwrap());
        assert!(succeeded(&books.conn).unwrap().is_empty());
    }

    #[test]
    fn products_come_and_go_with_their_items() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[derivation("x"), derivation("y")]);
        build(&mut books, "x");
        let product = |path: &str| Product {
            kind: "archive".to_owned(),
            path: path.into(),
            size: 1,
            sha256: None,
        };
        let wanted = ["/gnu/store/x", "/gnu/store/x/a", "/gnu/store/x-doc"].map(product);
        let (x, y) = (books.id("/gnu/store/x.drv"), books.id("/gnu/store/y.drv"));
        for id in [x, y] {
            books.write(|tx| add_products(tx, id, &wanted)).unwrap();
        }
        assert_eq!(products(&books.conn, x).unwrap().len(), 3);
        assert!(products(&books.conn, y).unwrap().is_empty(), "it is not over");
        books.write(|tx| forget_products(tx, &["/gnu/store/x".to_owned()])).unwrap();
        assert_eq!(products(&books.conn, x).unwrap(), ["/gnu/store/x-doc"]);
    }
}
