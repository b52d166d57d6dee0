//! The services an image can be built for by name.

/// A service: where it is from and how it is run.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name on the command line.
    pub name: &'static str,
    /// The Debian package it is in.
    pub package: &'static str,
    /// Files of ours for it: path and contents.
    pub files: &'static [(&'static str, &'static str)],
    command: &'static str,
    /// What is added to the command when the root is kept in memory; when it is on a disk.
    memory_or_disk: [&'static str; 2],
    /// Memory it is comfortable with beside its files, in MiB.
    pub memory_mib: u32,
}

/// All of them.
pub const SERVICES: [Service; 3] = [
    Service {
        name: "redis",
        package: "redis-server",
        files: &[],
        command: "exec redis-server --bind 0.0.0.0 --protected-mode no --daemonize no \
                  --dir /var/lib/redis",
        memory_or_disk: ["--save '' --appendonly no", "--save '' --appendonly yes"],
        memory_mib: 128,
    },
    Service {
        name: "memcached",
        package: "memcached",
        files: &[],
        command: "exec memcached -u root -l 0.0.0.0 -p 11211 -m 64",
        memory_or_disk: ["", ""],
        memory_mib: 128,
    },
    Service {
        name: "nginx",
        package: "nginx",
        files: &[
            ("etc/tandem/nginx.conf", include_str!("nginx.conf")),
            ("srv/www/index.html", include_str!("index.html")),
        ],
        command: "exec nginx -c /etc/tandem/nginx.conf",
        memory_or_disk: ["", ""],
        memory_mib: 64,
    },
];

impl Service {
    /// The service with this name, which may be its package's.
    pub fn named(name: &str) -> Option<&'static Self> {
        SERVICES
            .iter()
            .find(|service| service.name == name || service.package == name)
    }

    /// The names, for people.
    pub fn names() -> String {
        SERVICES.map(|service| service.name).join(", ")
    }

    /// The command that runs it.
    pub fn command(&self, disk: bool) -> String {
        let more = self.memory_or_disk[usize::from(disk)];
        format!("{} {more}", self.command).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_name_and_its_package() {
        let redis = Service::named("redis").unwrap();
        assert_eq!(Service::named("redis-server"), Some(redis));
        assert_eq!(Service::named("nothing"), None);
    }

    #[test]
    fn redis_keeps_data_only_on_a_disk() {
        let redis = Service::named("redis").unwrap();
        assert!(redis.command(false).contains("--appendonly no"));
        assert!(redis.command(true).contains("--appendonly yes"));
    }
}
