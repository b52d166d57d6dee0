//! `tandem generate`, for whoever makes a package: a page of the manual for each command, and completions for shells.

use crate::cli::{Cli, GenerateArgs};
use crate::failure::{During, Outcome};
use clap::CommandFactory;
use clap_complete::Shell;

/// Writes them.
///
/// # Errors
/// If a file cannot be written.
pub fn generate(args: &GenerateArgs) -> Outcome {
    let to = &args.to;
    let what = || format!("cannot write into {}", to.display());
    std::fs::create_dir_all(to).during(what())?;
    let mut cli = Cli::command();
    clap_mangen::generate_to(cli.clone(), to).during(what())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli, "tandem", to).during(what())?;
    }
    Ok(())
}
