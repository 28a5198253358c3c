//! The HTTP API: shapes that Cuirass's clients know, and some more.

use super::route::Route;

pub(super) const ROUTES: &[Route] = &[];
