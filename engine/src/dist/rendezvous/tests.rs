use super::door::Challenge;
use super::lines::receive_by;
use super::other::{Called, call};
use super::sockets::{listen, listen_beside};
use super::*;
use crate::dist::program;
use std::collections::VecDeque;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

fn place(rank: usize, world: usize) -> Place {
    Place { rank, world, local_rank: rank, local_world: world, host: format!("h{rank}") }
}

fn meet_all(places: Vec<(Place, &str)>, seconds: u64) -> Vec<Result<Option<Meeting>>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = listener.local_addr().unwrap().to_string();
    // Of the first rank 0; closed where there is none.
    let mut listener = places.iter().any(|(place, _)| place.rank == 0).then_some(listener);
    std::thread::scope(|scope| {
        let deadline = Duration::from_secs(seconds);
        let mut start = |(place, token): (Place, _)| {
            let listener = if place.rank == 0 { listener.take() } else { None };
            let address = Address { text: text.clone(), listener };
            scope.spawn(move || meet(&place, address, token, true, deadline))
        };
        let threads: Vec<_> = places.into_iter().map(&mut start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_are_connected_with_all() {
    // The last comes first.
    let meetings = meet_all((0..4).rev().map(|r| (place(r, 4), "t")).collect(), 20);
    let mut meetings: Vec<Meeting> = meetings.into_iter().map(|m| m.unwrap().unwrap()).rev().collect();
    for (a, meeting) in meetings.iter().enumerate() {
        assert_eq!(meeting.hosts, ["h0", "h1", "h2", "h3"]);
        for b in 0..4 {
            assert_eq!(meeting.data[b].is_some(), a != b);
            assert_eq!(meeting.control[b].is_some(), a != b && (a == 0 || b == 0));
        }
    }
    let mut to = meetings[1].data[3].take().unwrap();
    to.write_all(b"from 1").unwrap();
    let mut got = [0; 6];
    meetings[3].data[1].as_mut().unwrap().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from 1");
}

#[test]
fn missing_ranks_are_named() {
    let errors = meet_all(vec![(place(0, 4), "t"), (place(2, 4), "t")], 1);
    let said = errors[0].as_ref().err().unwrap().to_string();
    assert!(said.contains("never heard of 1, 3"), "{said}");
    // One message is enough.
    assert!(matches!(errors[1], Ok(None)));
    let alone = meet_all(vec![(place(2, 4), "t")], 1);
    let said = alone[0].as_ref().err().unwrap().to_string();
    assert!(said.contains("rank 2 on h2 cannot reach rank 0") && said.contains("MASTER_ADDR"), "{said}");
}

#[test]
fn other_jobs_other_worlds_and_doubles_are_told_apart() {
    let results = meet_all(vec![(place(0, 2), "a"), (place(1, 2), "a"), (place(1, 2), "b")], 2);
    assert!(matches!(results[..2], [Ok(Some(_)), Ok(Some(_))]));
    assert!(results[2].as_ref().err().unwrap().to_string().contains("cannot reach rank 0"));

    let results = meet_all(vec![(place(0, 2), "a"), (place(1, 3), "a")], 2);
    let said = results[0].as_ref().err().unwrap().to_string();
    assert!(said.contains("rank 1 on h1 is one of 3 ranks, rank 0 of 2"), "{said}");
    assert!(matches!(results[1], Ok(None)));
}

/// Rank 0 of two and its address; rank 1 is whoever calls.
fn first_of_two(seconds: u64) -> (SocketAddr, std::thread::JoinHandle<Result<Option<Meeting>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let address = Address { text: at.to_string(), listener: Some(listener) };
    let meets = move || meet(&place(0, 2), address, "t", false, Duration::from_secs(seconds));
    (at, std::thread::spawn(meets))
}

/// Says a process's hello, and what was said on that connection on others, before and after. Answers with that connection and
/// what was heard on each; the last one only where more than two ranks meet.
fn replay(at: SocketAddr, who: &Who) -> (BufReader<TcpStream>, Vec<Answer>) {
    let connect = || {
        let mut reader = BufReader::new(TcpStream::connect(at).unwrap());
        let challenge: Challenge = receive(&mut reader).unwrap().unwrap();
        (reader, challenge.challenge)
    };
    let (mut first, challenge) = connect();
    let last = who.world > 2;
    let (who, secret) = (serde_json::to_string(who).unwrap(), Secret::new("t"));
    let proof = secret.proof(&[HELLO, &challenge, "mine", &who]);
    let hello = Hello { who, challenge: "mine".into(), proof };
    let say = |reader: &mut BufReader<TcpStream>| {
        send(reader.get_ref(), &hello).unwrap();
        receive(reader).unwrap().unwrap()
    };
    let mut answers = vec![say(&mut connect().0), say(&mut first)];
    if last {
        answers.push(say(&mut connect().0));
    }
    (first, answers)
}

fn who(rank: usize, world: usize) -> Who {
    Who { version: program().to_owned(), rank, world, host: "h1".into(), port: 7 }
}

#[test]
fn a_hello_that_was_heard_before_proves_nothing() {
    let (at, rank_0) = first_of_two(20);
    let (mut first, answers) = replay(at, &who(1, 2));
    let [Answer::AnotherJob, Answer::Known { proof }] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(proof.len(), secret::PROOF);
    // The first is welcome nevertheless.
    let Answer::Welcome { peers, .. } = receive(&mut first).unwrap().unwrap() else { panic!("no welcome") };
    assert_eq!((peers[1].address.port(), &peers[1].host[..]), (7, "h1"));
    assert_eq!(rank_0.join().unwrap().unwrap().unwrap().hosts, ["h0", "h1"]);
}

#[test]
fn a_rank_that_comes_twice_is_refused_while_the_first_one_is_there() {
    // Rank 2 of 3 comes last.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let deadline = Duration::from_secs(20);
    let text = at.to_string();
    let go = |rank: usize, listener: Option<TcpListener>| {
        let address = Address { text: text.clone(), listener };
        std::thread::spawn(move || meet(&place(rank, 3), address, "t", true, deadline))
    };
    // It loses its connection once it is known, and calls again.
    let rank_0 = go(0, Some(listener));
    let (lost, answers) = replay(at, &who(1, 3));
    assert!(matches!(answers[..], [Answer::AnotherJob, Answer::Known { .. }, Answer::AnotherJob]));
    drop(lost);
    let either = [go(1, None), go(1, None)];
    while !either.iter().any(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let rank_2 = go(2, None);
    let results = either.map(|rank_1| rank_1.join().unwrap());
    let (joined, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert!(joined.len() == 1 && matches!(joined[0], Ok(Some(_))));
    let said = refused[0].as_ref().err().unwrap().to_string();
    assert!(said.contains("rank 1 on h1 is there twice; was the job started twice?"), "{said}");
    for rank in [rank_0, rank_2] {
        assert_eq!(rank.join().unwrap().unwrap().unwrap().hosts, ["h0", "h1", "h2"]);
    }
}

/// What is at rank 0's address does not know the token: it says nothing, or what it has heard elsewhere.
#[test]
fn strangers_at_the_address_of_rank_0_are_not_believed() {
    let secret = Secret::new("t");
    let stranger = |answers: &'static [&'static str]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::new(listener.local_addr().unwrap().to_string());
        let speaks = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                stream.write_all(answer.as_bytes()).unwrap();
                let _ = BufReader::new(&stream).read_line(&mut String::new());
            }
        });
        let end = Instant::now() + Duration::from_secs(20);
        let called = call(&place(1, 2), &address, &secret, true, end);
        speaks.join().unwrap();
        called
    };
    for answers in [
        &["{\"challenge\":\"1\"}\n", "{\"Known\":{\"proof\":\"00\"}}\n"][..],
        &["{\"challenge\":\"1\"}\n", "{\"Welcome\":{\"peers\":[],\"session\":\"1\"}}\n"],
        &["{\"challenge\":\"1\"}\n", "\"Refused\"\n"],
    ] {
        assert!(matches!(stranger(answers), Ok(Called::AnotherJob)), "{answers:?}");
    }
    for nonsense in [&["SSH-2.0\r\n"][..], &[], &["{\"challenge\":\"1\"}\n", "\n"]] {
        assert!(stranger(nonsense).is_err(), "{nonsense:?}");
    }
}

/// Its name may lead to the loopback there and to the machine elsewhere: what rank 0 sees at 127.0.0.1 is beside it.
#[test]
fn ranks_on_the_machine_of_rank_0_are_where_rank_0_was_reached() {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = Address::new(listener.local_addr().unwrap().to_string());
    let rank_0 = std::thread::spawn(move || {
        let mut reader = BufReader::new(listener.accept().unwrap().0);
        send(reader.get_ref(), &Challenge { challenge: "1".into() }).unwrap();
        let hello: Hello = receive(&mut reader).unwrap().unwrap();
        let proof = Secret::new("t").proof(&[KNOWN, "1", &hello.challenge]);
        send(reader.get_ref(), &Answer::Known { proof }).unwrap();
        let peer = |at: &str| Peer { host: String::new(), address: at.parse().unwrap() };
        let peers = ["127.0.0.1:1", "127.0.0.1:2", "10.0.0.9:3", "10.0.0.8:4"].map(peer).to_vec();
        send(reader.get_ref(), &Answer::Welcome { peers, session: "s".into() }).unwrap();
    });
    let end = Instant::now() + Duration::from_secs(20);
    let Ok(Called::Met(met)) = call(&place(3, 4), &address, &Secret::new("t"), false, end) else {
        panic!("not met");
    };
    rank_0.join().unwrap();
    let found: Vec<String> = met.peers.iter().map(|peer| peer.address.to_string()).collect();
    assert_eq!(found, ["127.0.0.2:1", "127.0.0.2:2", "10.0.0.9:3", "10.0.0.8:4"]);
    assert!(met.session == "s" && met.listener.is_none());
}

#[test]
fn a_message_has_its_time_however_slowly_it_comes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut reader = BufReader::new(listener.accept().unwrap().0);
    slow.write_all(b"1\n2").unwrap();
    let later = || Instant::now() + Duration::from_secs(20);
    assert_eq!(receive_by::<u8>(&mut reader, later()).unwrap(), Some(1));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                slow.write_all(b"2").unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let end = Instant::now() + Duration::from_millis(100);
        let late = receive_by::<u8>(&mut reader, end).unwrap_err();
        assert!(late.kind() == ErrorKind::TimedOut && Instant::now() >= end);
        over.store(true, SeqCst);
    });
    slow.write_all(b"\n").unwrap();
    assert!(receive_by::<u8>(&mut reader, later()).is_err());
    drop(slow);
    assert_eq!(receive_by::<u8>(&mut reader, later()).unwrap(), None);
}

/// Every listening socket gets hundreds of strangers before the last rank comes, and more until all have met.
#[test]
fn strangers_do_not_keep_the_ranks_from_meeting() {
    const MANY: usize = 500;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let (came, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let mut go = |rank| {
            let address = Address { text: at.to_string(), listener: listener.take() };
            // One after the other, strangers would have five seconds each.
            scope.spawn(move || meet(&place(rank, 4), address, "t", true, Duration::from_secs(60)))
        };
        let mut meetings: Vec<_> = (0..3).map(&mut go).collect();
        scope.spawn(|| {
            let mut strangers = VecDeque::new();
            while !over.load(SeqCst) {
                for port in listening(std::process::id()) {
                    let Ok(mut stranger) = TcpStream::connect(SocketAddr::new(at.ip(), port)) else {
                        continue;
                    };
                    let words = [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"{\"who\":", b"\n", &[0x80; 5000]];
                    let _ = stranger.write_all(words[came.fetch_add(1, SeqCst) % words.len()]);
                    strangers.push_back(stranger);
                }
                while strangers.len() > MANY {
                    strangers.pop_front();
                }
            }
        });
        while came.load(SeqCst) < MANY && !meetings.iter().any(|meeting| meeting.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        meetings.push(go(3));
        let meetings: Vec<_> = meetings.into_iter().map(|m| m.join().unwrap()).collect();
        over.store(true, SeqCst);
        for meeting in meetings {
            assert_eq!(meeting.unwrap().unwrap().data.iter().flatten().count(), 3);
        }
    });
}

/// TCP ports of this machine at which the process listens on 127.0.0.1.
fn listening(pid: u32) -> Vec<u16> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let own: Vec<String> =
        sockets.filter_map(|fd| std::fs::read_link(fd.path()).ok()?.to_str().map(str::to_owned)).collect();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = fields.get(1)?.strip_prefix("0100007F:")?;
        let ours = own.contains(&format!("socket:[{}]", fields.get(9)?));
        (fields[3] == "0A" && ours).then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().filter_map(port).collect()
}

#[test]
fn only_an_address_of_every_machine_itself_is_of_one_machine() {
    for (text, want) in [
        ("127.0.0.1:80", true),
        ("127.3.0.1:80", true),
        ("localhost:80", true),
        ("[::1]:80", true),
        ("10.0.0.1:80", false),
        ("node1:80", false),
        ("[fd00::2]:80", false),
        ("localhost.example:80", false),
    ] {
        assert_eq!(Address::new(text).is_of_one_machine(), want, "{text}");
    }
}

#[test]
fn sockets_listen_where_the_other_ranks_come_from() {
    let here = |text: &str| Address::new(text);
    let free = |ip: &str| {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    let at = free("127.0.0.1");
    let ip =
        |listener: std::io::Result<TcpListener>| listener.unwrap().local_addr().unwrap().ip().to_string();
    assert_eq!(ip(listen(&here(&at.to_string()), at)), "127.0.0.1");
    assert_eq!(ip(listen(&here("localhost:1"), at)), "127.0.0.1");
    // A name that leads to the loopback here leads to this machine elsewhere.
    assert_eq!(ip(listen(&here("node1:1"), at)), "0.0.0.0");
    assert_eq!(ip(listen_beside(at, false)), "0.0.0.0");
    assert_eq!(ip(listen_beside(at, true)), "127.0.0.1");
    // An address of nobody (203.0.113.0/24 is for documents), as behind a router that translates it.
    let outside: SocketAddr = format!("203.0.113.9:{}", at.port()).parse().unwrap();
    assert_eq!(ip(listen(&here(&outside.to_string()), outside)), "0.0.0.0");
}
