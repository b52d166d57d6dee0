//! `tandem init`: the cluster's certificates.

use crate::cli::InitArgs;
use crate::failure::Outcome;
use tls::{Authority, Member, Role};

/// How long an authority holds, in days, and an identity.
const AUTHORITY_DAYS: u32 = 3650;
const IDENTITY_DAYS: u32 = 365;

/// Makes an authority, or has it sign an identity.
///
/// # Errors
/// If it is there already, or the files cannot be written.
pub fn init(args: &InitArgs) -> Outcome {
    let wishes = [
        (Role::Host, &args.host),
        (Role::Service, &args.service),
        (Role::Operator, &args.operator),
    ];
    let wish = wishes
        .into_iter()
        .find_map(|(role, name)| Some((role, name.as_deref()?)));
    let Some((role, name)) = wish else {
        return authority(args);
    };
    let member = Member::new(role, name)?;
    let authority = Authority::open(&args.dir)?;
    let days = args.days.unwrap_or(IDENTITY_DAYS);
    let folder = authority.issue(&member, &args.vm, days, args.renew)?;
    crate::sayln!("{member}: {}", folder.display());
    if role == Role::Host {
        crate::sayln!("it may run: {}", args.vm.join(", "));
    }
    crate::sayln!(
        "it holds for {days} days; --renew makes a new one, which processes take up as they run"
    );
    crate::sayln!("copy that folder to where it is used, and name it there with --tls");
    Ok(())
}

fn authority(args: &InitArgs) -> Outcome {
    let days = args.days.unwrap_or(AUTHORITY_DAYS);
    Authority::create(&args.dir, days)?;
    let dir = args.dir.display();
    crate::sayln!("made an authority in {dir}, for {days} days");
    crate::sayln!("whoever has {dir}/ca.key can be any member of the cluster: it stays here");
    Ok(())
}
