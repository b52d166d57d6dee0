//! A busy host: threads that spin, nice levels, processes that stand still.

use kit::daemon::Daemon;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a host does beside recording or replaying.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// One thread that spins on each of so many CPUs, so much nicer than this one.
    pub spinners: Vec<i32>,
    /// How much nicer the machine is.
    pub machine_nice: i32,
    /// When the machine's process stands still.
    pub pauses: Vec<Pause>,
}

/// A process stands still, by SIGSTOP.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// From so long after the last pause, or after its start.
    pub after: Duration,
    /// For so long.
    pub length: Duration,
}

/// Threads that spin. Dropping it ends them.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the plan's spinners.
    pub fn start(plan: &HostPlan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(Pid::from_raw(0)).expect("this thread has CPUs");
        let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let spin = |(nicer, cpu): (&i32, usize)| {
            let (stop, nicer) = (stop.clone(), *nicer);
            std::thread::spawn(move || {
                let mut own = CpuSet::new();
                own.set(cpu).expect("a CPU of this thread's");
                // A CPU may have gone: then the spinner runs where the kernel puts it.
                let _ = sched_setaffinity(Pid::from_raw(0), &own);
                make_nicer(0, nicer);
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        Self {
            threads: plan.spinners.iter().zip(cpus).map(spin).collect(),
            stop,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Makes `machine` as nice as planned and has it stand still at the planned moments, until it ends or
/// there are no more. Before it is waited for: until then its process id is its own.
pub fn trouble(plan: &HostPlan, machine: &Daemon) {
    make_nicer(machine.pid(), plan.machine_nice);
    for pause in &plan.pauses {
        // The moments are the load itself: nothing is waited for here.
        std::thread::sleep(pause.after);
        if machine.has_ended() {
            break;
        }
        machine.signal(Signal::SIGSTOP);
        std::thread::sleep(pause.length);
        machine.signal(Signal::SIGCONT);
    }
}

/// Makes a process, or 0: the calling thread, `by` nicer than this thread.
fn make_nicer(process: u32, by: i32) {
    // SAFETY: both take and return numbers only. A level that is refused leaves the load as it was.
    unsafe {
        let own = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, process, own + by);
    }
}
