//! What an image that `tandem image` made asks of the machine it runs on: its disk, and a command line its scripts
//! can read.

use crate::failure::{Failure, Outcome};
use bundle::Manifest;
use std::path::{Path, PathBuf};

/// The disk a guest gets: the one that was `given`, or else that of its image, which is beside the image.
///
/// # Errors
/// If the image has its root on a disk, and there is none, or it was cut short: such a root never runs.
pub fn disk(manifest: &Manifest, image: &Path, given: Option<&Path>) -> Outcome<Option<PathBuf>> {
    // Images of older versions do not say how large their disks are, and are run with --disk alone.
    let Some(bytes) = manifest.disk_bytes else {
        return Ok(given.map(Path::to_owned));
    };
    let disk = given.map_or_else(|| bundle::disk_beside(image), Path::to_owned);
    let (image, shown) = (image.display(), disk.display());
    let length = match std::fs::metadata(&disk) {
        Ok(meta) => meta.len(),
        Err(e) if given.is_none() => {
            return Err(Failure::new(format!(
                "{image} has its root on a disk, which is not beside it: {shown}: {e} (--disk names it)"
            )));
        }
        Err(e) => {
            return Err(Failure::new(format!(
                "cannot use {shown} as the guest's disk: {e}"
            )));
        }
    };
    if length < bytes {
        return Err(Failure::new(format!(
            "{shown} is not whole: the disk of {image} has {bytes} bytes, and this has {length}"
        )));
    }
    Ok(Some(disk))
}

/// The TCP ports its server listens on.
pub fn tcp_ports(manifest: &Manifest) -> Vec<u16> {
    let ports = manifest.ports.iter();
    let ports = ports.filter_map(|port| port.strip_suffix("/tcp")?.parse().ok());
    ports.filter(|port| *port != 0).collect()
}

/// Sees to it that what is in quotes behind `tandem.run=` is what the image's script finds there: to the first
/// quote with no backslash before it, where the word ends.
///
/// # Errors
/// If the quotes do not close, or stand in the midst of the command.
pub fn check_command(cmdline: &str) -> Outcome {
    let begins = ["tandem.run=\"", "\"tandem.run="];
    for begin in begins {
        for (at, _) in cmdline.match_indices(begin) {
            check_quoted(&cmdline[at + begin.len()..])?;
        }
    }
    Ok(())
}

fn check_quoted(rest: &str) -> Outcome {
    let wrong = |why: &str| {
        Failure::usage(format!(
            "the command in tandem.run=\"...\" {why}: a quote within it is written \\\", or '"
        ))
    };
    let mut escaped = false;
    for (at, letter) in rest.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let behind = rest[at + 1..].chars().next();
                return match behind {
                    None | Some(' ') => Ok(()),
                    Some(_) => Err(wrong("goes on behind its last quote")),
                };
            }
            _ => {}
        }
    }
    Err(wrong("has no last quote"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(disk_bytes: Option<u64>) -> Manifest {
        let package = serde_json::json!({"name": "p", "version": "1", "sha256": ""});
        let manifest = serde_json::json!({
            "format": bundle::FORMAT, "kernel": package, "kernel_release": "6.1", "packages": [],
            "modules": [], "command": null, "cmdline": "", "memory_mib": 64, "disk": disk_bytes.is_some(),
            "disk_bytes": disk_bytes, "tells_status": true, "inputs_sha256": "", "kernel_sha256": "",
            "initrd_sha256": "",
        });
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn the_disk_is_beside_the_image_or_where_it_is_said_to_be_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (image, beside) = (folder.path().join("x.img"), folder.path().join("x.ext4"));
        let other = folder.path().join("other");
        let found = |bytes, given: Option<&Path>| {
            disk(&manifest(bytes), &image, given).map_err(|e| e.to_string())
        };
        assert_eq!(found(None, None), Ok(None));
        assert!(
            found(Some(4), None)
                .unwrap_err()
                .contains("--disk names it")
        );
        std::fs::write(&beside, b"1234").unwrap();
        assert_eq!(found(Some(4), None), Ok(Some(beside.clone())));
        assert!(found(Some(5), None).unwrap_err().contains("is not whole"));
        assert!(
            found(Some(4), Some(&other))
                .unwrap_err()
                .contains("cannot use")
        );
        std::fs::write(&other, b"123").unwrap();
        assert!(
            found(Some(4), Some(&other))
                .unwrap_err()
                .contains("is not whole")
        );
        assert_eq!(found(None, Some(&other)), Ok(Some(other.clone())));
    }

    #[test]
    fn only_tcp_ports_are_forwarded() {
        let mut manifest = manifest(None);
        manifest.ports = ["53/udp", "80/tcp", "0/tcp", "99999/tcp", "tcp", "443/tcp"]
            .map(str::to_owned)
            .into();
        assert_eq!(tcp_ports(&manifest), [80, 443]);
    }

    #[test]
    fn a_command_ends_where_its_quotes_do() {
        let check = |text: &str| check_command(text).map_err(|e| e.to_string());
        for good in [
            "quiet",
            "tandem.run=a,b",
            r#"x tandem.run="sh -c \"echo a b\"" y"#,
            r#"tandem.run="echo 'a'""#,
            r#"tandem.run="echo \\""#,
            r#""tandem.run=echo a""#,
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let inner = check(r#"tandem.run="sh -c "echo a"""#).unwrap_err();
        assert!(inner.contains("goes on behind its last quote"), "{inner}");
        assert!(
            check(r#"tandem.run="echo a"#)
                .unwrap_err()
                .contains("no last quote")
        );
        assert!(
            check(r#"tandem.run="echo \""#)
                .unwrap_err()
                .contains("no last quote")
        );
    }
}
