//! Several queries of one moment.

use rusqlite::{Connection, Transaction};

use super::Error;

/// Until it is dropped all that is read is of one moment, if no transaction sees to that already. It only reads. For many
/// small queries, to begin to read takes longer than to read.
pub(super) fn snapshot(conn: &Connection) -> Result<Option<Transaction<'_>>, Error> {
    Ok(conn.is_autocommit().then(|| conn.unchecked_transaction()).transpose()?)
}
