//! A package of this crate has the guests' files by way of the links in `sources`: none may be missing, or a package
//! builds nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Packages beside the guests that are none of them.
const OTHERS: [&str; 3] = ["builtin", "image", "programs"];
/// What belongs to tests, or to the folder's own builds.
const NOT_BUILT: [&str; 3] = ["examples", "tests", "target"];

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !NOT_BUILT.contains(&name.as_str()))
        .collect()
}

/// What a link leads to, also where git could make none and left a file that says so (`core.symlinks`).
fn led_to(link: PathBuf) -> PathBuf {
    if link.is_symlink() {
        return link;
    }
    let target = fs::read_to_string(&link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
    link.with_file_name("").join(target.trim_end())
}

/// Checks that `links` has each file and folder of `folder` but `left_out`, and is led to them.
fn same(folder: &Path, links: &Path, left_out: &[&str]) {
    let mut expected = names(folder);
    expected.retain(|name| !left_out.contains(&name.as_str()));
    let found: BTreeSet<_> = names(links)
        .into_iter()
        .map(|name| name.replace("manifest.toml", "Cargo.toml"))
        .filter(|name| !left_out.contains(&name.as_str()))
        .collect();
    assert_eq!(
        found,
        expected,
        "{} and {}",
        links.display(),
        folder.display()
    );
    for name in expected {
        let (file, mut link) = (folder.join(&name), links.join(&name));
        if name == "Cargo.toml" {
            link.set_file_name("manifest.toml");
        }
        if file.join("Cargo.toml").exists() {
            same(&file, &link, &[]);
        } else {
            let [file, link] = [file, led_to(link)].map(|path| path.canonicalize().unwrap());
            assert_eq!(file, link);
        }
    }
}

#[test]
fn the_links_lead_to_all_that_the_guests_and_programs_are_built_from() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (guests, sources) = (own.join(".."), own.join("sources"));
    same(&guests, &sources, &OTHERS);
    same(&guests.join("programs"), &sources.join("programs"), &[]);
}
