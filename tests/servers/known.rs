//! The ten servers: what they are installed from, how each is run in the foreground and let at by clients from
//! outside, and the client it gets.

use super::talk::{self, Open};
use std::path::Path;
use std::process::Command;

/// Makes words for a kernel command line, and files in a folder; or says why it cannot.
pub type Append = fn(&Path) -> Result<String, String>;

/// A server and its client.
pub struct Server {
    /// Its name.
    pub name: &'static str,
    /// The packages asked for.
    pub packages: &'static [&'static str],
    /// The command that runs it.
    pub command: &'static str,
    /// More arguments for `tandem image`.
    pub more: &'static [&'static str],
    /// Words for the kernel's command line, which may need files in this folder; if they cannot be had, why.
    pub append: Option<Append>,
    /// Its port.
    pub port: u16,
    /// Its client.
    pub open: Open,
    /// Whether it compiles as it runs, for minutes before it serves.
    pub compiles: bool,
}

/// What most have.
const USUAL: Server = Server {
    name: "",
    packages: &[],
    command: "",
    more: &[],
    append: None,
    port: 0,
    open: talk::node,
    compiles: false,
};

pub fn postgresql() -> Server {
    Server {
        name: "postgresql",
        packages: &["postgresql"],
        command: "c=/etc/postgresql/15/main; echo 'host all all 0.0.0.0/0 trust' >>$c/pg_hba.conf; \
                  exec su postgres -c \"exec /usr/lib/postgresql/15/bin/postgres \
                  -D /var/lib/postgresql/15/main -c config_file=$c/postgresql.conf -c listen_addresses=0.0.0.0\"",
        port: 5432,
        open: talk::postgresql,
        ..USUAL
    }
}

pub fn mariadb() -> Server {
    Server {
        name: "mariadb",
        packages: &["mariadb-server"],
        command: "printf '%s;\\n' \"create user tandem@'%'\" \"grant all on *.* to tandem@'%'\" >/run/users.sql; \
                  install -d -o mysql /run/mysqld; \
                  exec mariadbd --user=mysql --bind-address=0.0.0.0 --init-file=/run/users.sql",
        port: 3306,
        open: talk::mariadb,
        ..USUAL
    }
}

pub fn rabbitmq() -> Server {
    Server {
        name: "rabbitmq",
        packages: &["rabbitmq-server"],
        command: "echo 'loopback_users = none' >/etc/rabbitmq/rabbitmq.conf; \
                  rabbitmq-plugins enable --offline rabbitmq_stomp && exec rabbitmq-server",
        more: &["--memory", "1024"],
        port: 61613,
        open: talk::rabbitmq,
        compiles: true,
        ..USUAL
    }
}

pub fn haproxy() -> Server {
    Server {
        name: "haproxy",
        packages: &["haproxy"],
        command: "echo served through haproxy >/srv/index.html; httpd -p 127.0.0.1:8080 -h /srv; \
                  printf 'defaults\\n mode http\\n timeout connect 60s\\n timeout client 1h\\n timeout server 1h\\n\
                  listen web\\n bind :80\\n server web 127.0.0.1:8080\\n' >/run/haproxy.cfg; \
                  exec haproxy -db -f /run/haproxy.cfg",
        port: 80,
        open: talk::haproxy,
        ..USUAL
    }
}

pub fn bind9() -> Server {
    Server {
        name: "bind9",
        packages: &["bind9"],
        command: "install -d -o bind /run/named; exec named -f -u bind",
        port: 53,
        open: talk::bind9,
        ..USUAL
    }
}

pub fn openssh_server() -> Server {
    Server {
        name: "openssh-server",
        packages: &["openssh-server"],
        command: "exec /usr/sbin/sshd -D -e",
        append: Some(with_key),
        port: 22,
        open: talk::ssh,
        ..USUAL
    }
}

/// A key for the client in `folder`, and a command that lets it in.
fn with_key(folder: &Path) -> Result<String, String> {
    let key = folder.join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(&key)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return Err("no ssh-keygen (Debian's package openssh-client)".to_owned());
    }
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("the key");
    Ok(format!(
        "tandem.run=\"mkdir -p -m 700 /run/sshd /root/.ssh; echo {} >/root/.ssh/authorized_keys; \
         exec /usr/sbin/sshd -D -e\"",
        public.trim()
    ))
}

pub fn prometheus() -> Server {
    Server {
        name: "prometheus",
        packages: &["prometheus"],
        command: "exec prometheus --config.file=/etc/prometheus/prometheus.yml \
                  --storage.tsdb.path=/var/lib/prometheus/metrics2 --web.listen-address=0.0.0.0:9090",
        port: 9090,
        open: talk::prometheus,
        ..USUAL
    }
}

pub fn zookeeper() -> Server {
    Server {
        name: "zookeeper",
        packages: &["zookeeper"],
        // With a logger, whose lines are on the console.
        command: "sed -i 's,^CLASSPATH=.,&/usr/share/java/slf4j-simple.jar:,' /etc/zookeeper/conf/environment; \
                  exec /usr/share/zookeeper/bin/zkServer.sh start-foreground",
        port: 2181,
        open: talk::zookeeper,
        compiles: true,
        ..USUAL
    }
}

pub fn node() -> Server {
    Server {
        name: "node",
        packages: &["nodejs"],
        command: "exec node -e 'require(\"http\").createServer((question, answer) => \
                  answer.end(\"asked for \" + question.url)).listen(80)'",
        port: 80,
        open: talk::node,
        ..USUAL
    }
}

pub fn etcd() -> Server {
    Server {
        name: "etcd",
        packages: &["etcd-server"],
        command: "exec etcd --data-dir /var/lib/etcd/default --listen-client-urls http://0.0.0.0:2379 \
                  --advertise-client-urls http://10.77.0.2:2379",
        port: 2379,
        open: talk::etcd,
        ..USUAL
    }
}
