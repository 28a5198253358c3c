//! What people see of workers in a browser, and do with them.

use serde_json::json;

use super::backend::Farm;
use crate::support::http::Web;
use crate::support::jobs::system;
use crate::support::until;
use crate::web::access::{bearer, token};
use crate::web::feeds::samples;

#[test]
fn workers_are_seen_and_paused_and_their_machines_remembered() {
    let builds = [("good", "echo > $out"), ("bad", "exit 3")];
    let mut farm = Farm::start_with(&["--web=127.0.0.1:0"], &builds);
    let good = farm.wait("good", "succeeded");
    let bad = farm.wait("bad", "failed");
    let worker = farm.daemon.ask("workers").remove(0);
    let (name, machine) = (worker["name"].as_str().unwrap(), worker["machine"].as_str().unwrap());
    let web = Web::of(&farm.daemon);
    let page = |path: &str| web.get(path).text();
    let workers = page("/workers");
    assert!(workers.contains(name) && workers.contains(machine), "{workers}");
    assert!(!workers.contains("paused"), "{workers}");
    assert!(
        page(&format!("/build/{}/details", good["id"])).contains(&format!("/machine/{machine}\""))
    );
    let there = format!("/machine/{machine}");
    let api = format!("/api/machines/{machine}");
    let told = web.json(&api);
    let counts = json!({"total": 2, "succeeded": 1, "failed": 1, "aborted": 0, "canceled": 0});
    assert_eq!((&told["counts"], &told["workers"][0]["name"]), (&counts, &worker["name"]));
    assert_eq!(told["builds"][0]["worker"], worker["name"], "{told}");
    assert!(worker["joined"].as_i64().unwrap() > 0, "{worker}");
    assert_eq!((&worker["failures"], &worker["since"]), (&json!(0), &json!(null)));
    let of_system = format!("gorget_system_workers{{system=\"{}\"}}", system());
    let numbers = || samples(&page("/prometheus"));
    assert_eq!(numbers()["gorget_workers{state=\"idle\"}"], 1.0);
    assert_eq!(numbers()[&of_system], 1.0);
    assert!(page(&there).contains("Of the last 2: 1 succeeded, 1 failed."), "{}", page(&there));

    let token = token(&mut farm.daemon, "me", "operator", "");
    let (header, value) = bearer(&token);
    let post = |path: &str| web.send("POST", path, &[(header, &value)], b"").status;
    assert_eq!(web.get(&format!("/admin/worker/{name}/pause")).status, 200);
    assert!(!page("/workers").contains("is paused"), "it was only asked");
    assert_eq!(web.post(&format!("/api/workers/{name}/pause"), &[], "").status, 401);
    assert_eq!(post("/api/workers/nobody/pause"), 404);
    assert_eq!(post(&format!("/api/workers/{name}/pause")), 200);
    assert!(page("/workers").contains("1 worker is paused"), "{}", page("/workers"));
    assert!(page("/workers").contains("by an operator"), "{}", page("/workers"));
    assert_eq!(numbers()["gorget_workers{state=\"paused\"}"], 1.0);
    assert_eq!(numbers()[&of_system], 0.0);
    assert_eq!(farm.daemon.outcome(&format!("restart-build {}", bad["id"])), "ok");
    assert_eq!(farm.wait("bad", "scheduled")["attempts"], 0);
    assert_eq!(post(&format!("/admin/worker/{name}/resume")), 303);
    farm.wait("bad", "failed");

    // It goes, and what it has built stays.
    farm.worker.kill();
    until("its end", || farm.daemon.ask("workers").is_empty().then_some(()));
    assert!(page(&there).contains("No worker of it is here."), "{}", page(&there));
    assert!(page(&there).contains("1 succeeded, 1 failed"), "{}", page(&there));
    assert_eq!(web.get("/machine/nobody").status, 404);
    assert_eq!((&web.json(&api)["counts"], &web.json(&api)["workers"]), (&counts, &json!([])));
    assert_eq!(web.get("/api/machines/nobody").status, 404);
    assert!(!page("/").contains("nobody builds for"));
    assert_eq!(farm.daemon.outcome(&format!("restart-build {}", bad["id"])), "ok");
    farm.wait("bad", "scheduled");
    let queue = page("/queue");
    let unserved = format!("1 build waits for a worker: nobody builds for {}.", system());
    assert!(queue.contains(&unserved), "{queue}");
    assert!(page("/").contains(&unserved), "{}", page("/"));
    let obstructed =
        format!("gorget_queue_obstructed_builds{{waiting=\"no worker for {}\"}}", system());
    assert_eq!(numbers()[&obstructed], 1.0);
    let obstacles = &farm.daemon.ask("status")[0]["obstacles"];
    assert_eq!(obstacles[0]["waiting"], format!("no worker for {}", system()));
    // What waits is not what was built.
    assert!(page(&there).contains("Of the last 1: 1 succeeded."), "{}", page(&there));
}
