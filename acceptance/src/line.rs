//! A conversation with a script in a VM, line by line.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use crate::PATIENCE;

/// Ends with the script, or ends the script when dropped.
pub struct Line {
    process: Child,
    to: Option<ChildStdin>,
    from: mpsc::Receiver<String>,
}

impl Line {
    pub(crate) fn start(mut command: Command) -> Line {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tombolo starts");
        let to = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let (into, from) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| into.send(line)));
        Line { process, to, from }
    }

    /// The next line; panics when patience ends or the script does.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.from.recv_timeout(PATIENCE).expect("the script in the VM says something")
    }

    /// The next line if there is one within this time.
    pub fn hear_within(&self, time: Duration) -> Option<String> {
        self.from.recv_timeout(time).ok()
    }

    pub fn say(&mut self, line: &str) {
        let to = self.to.as_mut().expect("open until dropped");
        writeln!(to, "{line}").and_then(|()| to.flush()).expect("the script in the VM listens");
    }

    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(self.to.take());
        // The script may wait for something that never comes; without us it is nobody's.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
