//! What every answer has in common.

use crate::support::daemon::Daemon;
use crate::support::http::Web;

#[test]
fn what_is_not_there_is_told_so() {
    let daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    let web = Web::of(&daemon);
    let reply = web.get("/nothing/here?x=1");
    assert_eq!(reply.status, 404);
    assert_eq!(reply.text(), "Resource not found: /nothing/here?x=1");
    assert_eq!(reply.header("content-type"), Some("text/plain;charset=utf-8"));
}
