//! What goes on: events, and logs that grow.

use super::route::Route;

pub(super) const ROUTES: &[Route] = &[];
