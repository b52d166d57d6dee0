//! Hosts that speak TLS: who may ask for what, and which host is given what.

use super::common::{assert_one_line, machine, text};
use super::site::Site;

#[test]
fn hosts_run_what_their_certificates_name_and_operators_ask_for_it() {
    let _machine = machine();
    let site = Site::secret();
    let hosts = ["a", "b", "c"].map(|name| site.host(name));
    let web = site.recipe("web", "");
    let up = ["up", text(&web)];
    assert_one_line(&site.ask_as("hosts/a", &up), 1, &["host a is no operator"]);
    let said = site.say(&up);
    assert_eq!(
        said,
        "'web' is protected, view 1: it runs on a, and its backup on c\n"
    );
    // b is no place for it, which is said where a person looks.
    hosts[2].kill_replica("web");
    site.wait_pair("web", 2, "a", "c");
    site.say(&["drain", "c", "--no-wait"]);
    hosts[2].kill_replica("web");
    site.wait_status(|status| {
        let trouble = status["vms"][0]["trouble"].as_str().unwrap_or_default();
        trouble == "no spare: b may not run it, by its certificate; c is drained"
    });
    // What the guest printed is an operator's to read.
    assert_eq!(site.say(&["logs", "web"]), "kv: ready\n");
    let logs = site.ask_as("hosts/a", &["logs", "web"]);
    assert_one_line(&logs, 1, &["host a is no operator"]);
    for words in [&["down", "web"][..], &["drain", "a"], &["failover", "web"]] {
        let refused = site.ask_as("hosts/b", words);
        assert_one_line(&refused, 1, &["host b is no operator"]);
    }
    site.say(&["down", "web"]);
    for host in &hosts {
        host.wait_no_replica("web");
    }
}
