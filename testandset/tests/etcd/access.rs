//! Who is let in: certificates, users, passwords, rights; and the line that says so where it is not.

use crate::rigs::etcd::{Etcd, Options, is_here, patient};
use crate::{flag, refusal, who};
use std::path::{Path, PathBuf};
use std::process::Command;
use testandset::{Arbiter, Verdict};
use testing::skipped::skip_this;

/// Certificates, made by the `openssl` of this host.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    /// A CA, and what it vouches for; `None`, said on standard output, where there is no `openssl`.
    fn make() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let made = Self { dir };
        if !Command::new("openssl")
            .arg("version")
            .output()
            .is_ok_and(|o| o.status.success())
        {
            skip_this(&"no openssl");
            return None;
        }
        for ca in ["ca", "other-ca"] {
            made.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={ca} \
                 -keyout {ca}.key -out {ca}.pem"
            ));
        }
        // Where users are enabled etcd's gateway takes no client's certificate that has a common name.
        made.certificate("client", "ca", "O=client", "clientAuth", "");
        made.certificate("named", "ca", "CN=tandem", "clientAuth", "");
        made.certificate("strange", "other-ca", "O=client", "clientAuth", "");
        Some(made)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let mut openssl = Command::new("openssl");
        let output = openssl
            .args(words.split(' '))
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {words}: {said}");
    }

    /// Makes `name`.pem and `name`.key of `subject`, for `uses` and under the names of `more`.
    fn certificate(&self, name: &str, ca: &str, subject: &str, uses: &str, more: &str) {
        let words = format!("basicConstraints=CA:FALSE\nextendedKeyUsage={uses}\n{more}\n");
        std::fs::write(self.path("extensions"), words).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /{subject} -keyout {name}.key \
             -out request"
        ));
        self.openssl(&format!(
            "x509 -req -in request -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 -extfile extensions \
             -out {name}.pem"
        ));
    }

    /// Makes the server's certificate, for the host of `member`.
    fn serve(&self, member: &str) {
        let host = member.rsplit_once(':').unwrap().0;
        let names = format!("subjectAltName=IP:{host}");
        // etcd's own gateway uses it as a client's, so it has both uses.
        self.certificate("server", "ca", "O=server", "serverAuth,clientAuth", &names);
    }

    /// How etcd is told of them.
    fn options(&self) -> Options {
        let path = |name| self.path(name).display().to_string();
        let words = [
            ("--cert-file", path("server.pem")),
            ("--key-file", path("server.key")),
            ("--trusted-ca-file", path("ca.pem")),
        ];
        let mut more: Vec<String> = words
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
        more.push("--client-cert-auth".into());
        Options { more, tls: true }
    }

    /// How a replica is told of them.
    fn words(&self, ca: &str, client: &str) -> String {
        let dir = self.dir.path().display();
        format!("ca={dir}/{ca}.pem,cert={dir}/{client}.pem,key={dir}/{client}.key")
    }
}

/// A member with a user `tandem` that may use keys under `/tandem/`, and its root.
fn with_users() -> Etcd {
    let mut etcd = Etcd::start(1, Options::default());
    etcd.wait_until_serving(0);
    etcd.api(0, "auth/user/add", r#"{"name":"root","password":"roots"}"#);
    etcd.api(0, "auth/user/grant", r#"{"user":"root","role":"root"}"#);
    etcd.api(
        0,
        "auth/user/add",
        r#"{"name":"tandem","password":"tandems"}"#,
    );
    etcd.api(0, "auth/role/add", r#"{"name":"tandem"}"#);
    // From "/tandem/" to "/tandem0": all keys with that prefix.
    etcd.api(
        0,
        "auth/role/grant",
        r#"{"name":"tandem","perm":{"permType":"READWRITE","key":"L3RhbmRlbS8=","range_end":"L3RhbmRlbTA="}}"#,
    );
    etcd.api(0, "auth/user/grant", r#"{"user":"tandem","role":"tandem"}"#);
    etcd.api(0, "auth/enable", "{}");
    etcd
}

/// Waits until a replica that is told `words` is refused with `part`.
fn wait_for_refusal(etcd: &mut Etcd, words: &str, part: &str) {
    etcd.wait_for(|| {
        let line = refusal(words);
        // Until it serves nobody is there.
        assert!(
            line.contains(part) || line.contains("out of reach"),
            "{line}"
        );
        if line.contains(part) {
            Ok(())
        } else {
            Err(line)
        }
    });
}

fn password_file(dir: &Path, password: &str) -> String {
    let path = dir.join(format!("password-{password}"));
    std::fs::write(&path, format!("{password}\n")).unwrap();
    format!("password-file={}", path.display())
}

#[test]
fn a_user_with_rights_on_the_prefix_is_let_in_and_nobody_else() {
    if !is_here() {
        return;
    }
    let mut etcd = with_users();
    let at = etcd.words();
    let password = password_file(etcd.dir.path(), "tandems");
    let arbiter = patient(&format!("{at},user=tandem,{password}"));
    arbiter.check().unwrap();
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
    assert!(!format!("{arbiter:?}").contains("tandems"), "{arbiter:?}");
    // The token it was given is forgotten, and made anew.
    etcd.kill(0);
    etcd.start_member(0);
    etcd.wait_for(|| arbiter.check());
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
    // Rights are changed, whereupon etcd takes no token that is older.
    let given = etcd.api(
        0,
        "auth/authenticate",
        r#"{"name":"root","password":"roots"}"#,
    );
    let root = given["token"].as_str().unwrap();
    etcd.api_as(0, "auth/role/add", r#"{"name":"another"}"#, Some(root));
    assert_eq!(
        arbiter.test_and_set(&flag(2), &who("a")).unwrap(),
        Verdict::Won
    );
    assert_eq!(arbiter.holder(&flag(2)).unwrap(), Some(who("a")));

    let wrong = password_file(etcd.dir.path(), "guessed");
    for (words, said) in [
        (String::new(), "it lets nobody in without user="),
        (
            format!(",user=tandem,{wrong}"),
            "user 'tandem' or its password is wrong",
        ),
        (
            format!(",user=nobody,{wrong}"),
            "user 'nobody' or its password is wrong",
        ),
        (
            format!(",user=tandem,{password},prefix=/other"),
            "user 'tandem' may not read and write all keys that begin with /other/",
        ),
    ] {
        let line = refusal(&format!("{at}{words}"));
        assert!(line.contains(said) && line.contains(&at), "{words}: {line}");
        assert!(!line.contains("guessed"), "{line}");
    }
}

#[test]
fn a_user_where_everybody_is_let_in_is_told_of() {
    if !is_here() {
        return;
    }
    let mut etcd = Etcd::start(1, Options::default());
    etcd.wait_until_serving(0);
    let password = password_file(etcd.dir.path(), "tandems");
    let line = refusal(&format!("{},user=tandem,{password}", etcd.words()));
    assert!(
        line.contains("authentication is not enabled there"),
        "{line}"
    );
}

#[test]
fn certificates_are_looked_at_on_both_sides() {
    if !is_here() {
        return;
    }
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let mut etcd = with_users();
    let at = etcd.words();
    certificates.serve(&at);
    etcd.kill(0);
    etcd.set_options(certificates.options());
    etcd.start_member(0);
    let password = password_file(etcd.dir.path(), "tandems");
    let right = format!(
        "{at},{},user=tandem,{password}",
        certificates.words("ca", "client")
    );
    let arbiter = patient(&right);
    etcd.wait_for(|| arbiter.check());
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
    assert_eq!(arbiter.holder(&flag(1)).unwrap(), Some(who("a")));

    let only_ca = format!("ca={}", certificates.path("ca.pem").display());
    for (words, said) in [
        (
            certificates.words("other-ca", "client"),
            "is none that the CA in",
        ),
        (
            certificates.words("ca", "strange"),
            "look at cert=FILE and key=FILE",
        ),
        (only_ca, "look at cert=FILE and key=FILE"),
        (
            certificates.words("ca", "named"),
            "no client certificate with a common name",
        ),
        (String::new(), "if it speaks HTTPS, give ca=FILE"),
    ] {
        let words = format!("{at},{words}").trim_end_matches(',').to_owned();
        let line = refusal(&words);
        assert!(line.contains(said) && line.contains(&at), "{words}: {line}");
    }
    // Another host's certificate.
    certificates.serve("127.0.0.9:1");
    etcd.kill(0);
    etcd.start_member(0);
    wait_for_refusal(&mut etcd, &right, "its certificate is for another host");
    // And none at all.
    etcd.kill(0);
    etcd.set_options(Options::default());
    etcd.start_member(0);
    wait_for_refusal(&mut etcd, &right, "if it speaks HTTP, leave out ca=FILE");
}
