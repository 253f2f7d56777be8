use super::*;

fn find(variables: &[(&str, &str)]) -> Result<Option<Found>> {
    let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Environment(&get).find("here")
}

fn place(found: &Found) -> [usize; 4] {
    let Place { rank, world, local_rank, local_world, .. } = found.place;
    [rank, world, local_rank, local_world]
}

const OMPI: [(&str, &str); 5] = [
    ("OMPI_COMM_WORLD_RANK", "5"),
    ("OMPI_COMM_WORLD_SIZE", "8"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ("PMIX_NAMESPACE", "job-7"),
];

#[test]
fn every_starter_is_recognized() {
    assert_eq!(find(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
    let found = find(&OMPI).unwrap().unwrap();
    assert_eq!((found.starter, place(&found)), (Starter::OpenMpi, [5, 8, 1, 4]));
    assert_eq!(found.meet, None);
    let with_address = [&OMPI[..], &[("MASTER_ADDR", "n1"), ("MASTER_PORT", "29500")]].concat();
    assert_eq!(find(&with_address).unwrap().unwrap().meet.unwrap(), "n1:29500");

    let torchrun = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "n1"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];
    let found = find(&torchrun).unwrap().unwrap();
    assert_eq!((found.starter, place(&found)), (Starter::Torchrun, [3, 4, 1, 2]));
    assert_eq!(found.meet.unwrap(), "n1:29501");

    let slurm = [
        ("SLURM_PROCID", "9"),
        ("SLURM_STEP_NUM_TASKS", "16"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_TASKS_PER_NODE", "8(x2)"),
        ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "77"),
    ];
    let found = find(&slurm).unwrap().unwrap();
    assert_eq!((found.starter, place(&found)), (Starter::Slurm, [9, 16, 1, 8]));
    assert!(found.meet.unwrap().starts_with("gpu03:2"));

    let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("PARENT", "4711")];
    let found = find(&pmi).unwrap().unwrap();
    assert_eq!((found.starter, place(&found)), (Starter::Pmi, [1, 2, 1, 2]));
    assert!(found.meet.unwrap().starts_with("127.0.0.1:2"));
}

/// The variables that a process gets, and its place: as each starter's documentation has them, those of Open MPI as its
/// version 4.1 sets them.
#[test]
fn every_starters_variables_give_rank_world_and_local_rank() {
    let cases: [(&str, &str, Starter, [usize; 4]); 11] = [
        (
            "our own worker under mpirun, one a machine",
            "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1 \
             LAUNCHER_RANK=11 LAUNCHER_WORLD=16 LAUNCHER_LOCAL_RANK=3 LAUNCHER_LOCAL_WORLD=8",
            Starter::Own,
            [11, 16, 3, 8],
        ),
        ("torchrun", "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", Starter::Torchrun, [3, 4, 1, 2]),
        (
            "torchrun, an agent a machine under srun",
            "RANK=13 WORLD_SIZE=16 LOCAL_RANK=5 LOCAL_WORLD_SIZE=8 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 \
             SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_TASK_PID=40",
            Starter::Torchrun,
            [13, 16, 5, 8],
        ),
        (
            "what torchrun sets, by hand and on one machine",
            "RANK=1 WORLD_SIZE=2",
            Starter::Torchrun,
            [1, 2, 1, 2],
        ),
        (
            "Open MPI",
            "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 \
             OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_RANK=5",
            Starter::OpenMpi,
            [5, 8, 1, 4],
        ),
        (
            "Open MPI, whose daemons are tasks of srun",
            "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4 \
             SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0 SLURM_TASK_PID=40",
            Starter::OpenMpi,
            [5, 8, 1, 4],
        ),
        (
            "srun that mpirun has started",
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1 \
             SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_TASK_PID=41",
            Starter::Slurm,
            [3, 4, 1, 2],
        ),
        ("MPICH", "PMI_RANK=6 PMI_SIZE=8 MPI_LOCALRANKID=2 MPI_LOCALNRANKS=4", Starter::Pmi, [6, 8, 2, 4]),
        ("MPICH on one machine, of old", "PMI_RANK=1 PMI_SIZE=2", Starter::Pmi, [1, 2, 1, 2]),
        (
            "srun --mpi=pmi2, through a script",
            "PMI_RANK=9 PMI_SIZE=16 SLURM_PROCID=9 SLURM_STEP_NUM_TASKS=16 SLURM_LOCALID=1 \
             SLURM_STEP_TASKS_PER_NODE=8(x2) SLURM_TASK_PID=40",
            Starter::Pmi,
            [9, 16, 1, 8],
        ),
        (
            "srun",
            "SLURM_PROCID=9 SLURM_STEP_NUM_TASKS=16 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=8(x2) SLURM_TASK_PID=41",
            Starter::Slurm,
            [9, 16, 1, 8],
        ),
    ];
    for (what, variables, starter, want) in cases {
        let mut variables: Vec<_> =
            variables.split_whitespace().map(|v| v.split_once('=').unwrap()).collect();
        variables.push(("PID", "41"));
        let found = find(&variables).unwrap().unwrap();
        assert_eq!((found.starter, place(&found)), (starter, want), "{what}");
    }
    // A shell in an allocation, and what a batch script starts, is no task of several.
    for alone in ["SLURM_JOB_ID=7 SLURM_NTASKS=8", "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0"] {
        let variables: Vec<_> = alone.split_whitespace().map(|v| v.split_once('=').unwrap()).collect();
        assert_eq!(find(&variables).unwrap(), None, "{alone}");
    }
}

#[test]
fn mpiruns_machine_is_where_rank_0_is_looked_for() {
    const MPIRUN: &str = "196.0;tcp://10.0.0.1,10.1.0.1:46871;tcp6://[fd00::2]:39309";
    let at = |rank: &'static str, daemon: &'static str| {
        let mut variables = OMPI.to_vec();
        variables[0].1 = rank;
        variables.extend([("OMPI_MCA_orte_hnp_uri", MPIRUN), ("OMPI_MCA_orte_local_daemon_uri", daemon)]);
        find(&variables).unwrap().unwrap()
    };
    let other = "196.1;tcp://10.0.0.9:46871";
    let found = at("5", other);
    assert_eq!(found.meet, None);
    assert!(found.near.as_ref().is_some_and(|near| near.starts_with("10.0.0.1:2")), "{found:?}");
    assert_eq!(at("0", MPIRUN).near, found.near);
    // Rank 0 knows that it is elsewhere.
    assert_eq!(at("0", other).near, None);
    let mut one_a_machine = found.clone();
    (one_a_machine.place.local_rank, one_a_machine.place.local_world) = (0, 1);
    let Role::Spawn { meet, .. } = role(Some(one_a_machine), Some(8), "-").unwrap() else {
        panic!("it spawns");
    };
    assert_eq!(meet, found.near);
}

#[test]
fn the_processes_of_a_job_have_one_token_wherever_they_run() {
    let token = |variables: &[(&str, &str)]| find(variables).unwrap().unwrap().token;
    let [here, there] = [&OMPI[..], &[&OMPI[..], &[("SLURM_STEP_ID", "3")]].concat()].map(token);
    assert_eq!(here, there);
    let by_hand = |rank, parent, port| {
        let given = [("RANK", rank), ("WORLD_SIZE", "2"), ("PARENT", parent), ("MASTER_ADDR", "n1")];
        token(&[&given[..], &[("MASTER_PORT", port)]].concat())
    };
    assert_eq!(by_hand("0", "40", "29500"), by_hand("1", "77", "29500"));
    assert_ne!(by_hand("0", "40", "29500"), by_hand("1", "40", "29501"));
    let step = |id| {
        let task = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_JOB_ID", "7")];
        token(&[&task[..], &[("SLURM_STEP_ID", id)]].concat())
    };
    assert_ne!(step("0"), step("1"));
}

#[test]
fn a_job_of_one_machine_meets_nowhere_else() {
    let meet = |variables: &str| {
        let variables: Vec<_> = variables.split_whitespace().map(|v| v.split_once('=').unwrap()).collect();
        find(&variables).unwrap().unwrap().meet.unwrap()
    };
    let torchrun = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=29400";
    assert_eq!(meet(torchrun), "127.0.0.1:29400");
    assert_eq!(meet(&format!("{torchrun} TORCHELASTIC_USE_AGENT_STORE=True")), "127.0.0.1:29401");
    let slurm =
        "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 SLURM_JOB_ID=7 SLURM_STEP_NODELIST=node1";
    assert!(meet(&format!("{slurm} SLURM_STEP_TASKS_PER_NODE=2")).starts_with("127.0.0.1:2"));
    // Those that tell of no machine may be on several.
    assert!(meet(&format!("{slurm} SLURM_STEP_TASKS_PER_NODE=1(x2)")).starts_with("node1:2"));
    assert_eq!(meet("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=29400"), "node1:29400");
    assert_eq!(meet("RANK=1 WORLD_SIZE=2 MASTER_ADDR=fd00::2 MASTER_PORT=29400"), "[fd00::2]:29400");
}

#[test]
fn a_token_that_is_given_keeps_strangers_out_and_jobs_apart() {
    let token = |given: &'static str, port| {
        let by_hand = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", port)];
        let found = find(&[&by_hand[..], &[("BERT_JOB_TOKEN", given)]].concat()).unwrap().unwrap();
        (found.token, found.guessable)
    };
    let (none, given, another) =
        (token("", "1"), token("0123456789abcdef", "1"), token("0123456789abcdef", "2"));
    assert!(none.1 && !given.1 && !another.1);
    assert!(none.0 != given.0 && given.0 != another.0 && given.0.contains("0123456789abcdef"));
    // A worker has its own from the process that started it.
    let worker = [(RANK, "0"), (WORLD, "2"), (TOKEN, "drawn"), ("BERT_JOB_TOKEN", "0123456789abcdef")];
    let found = find(&worker).unwrap().unwrap();
    assert_eq!((&found.token[..], found.guessable), ("drawn", false));
    let short = [("RANK", "0"), ("WORLD_SIZE", "2"), ("BERT_JOB_TOKEN", "0123456789abcde")];
    let said = find(&short).unwrap_err().to_string();
    assert!(said.contains("BERT_JOB_TOKEN has 15 bytes") && said.contains("at least 16"), "{said}");
}

#[test]
fn nonsense_in_the_environment_is_named() {
    for (port, store, most) in [("0", "", 65535), ("65536", "", 65535), ("65535", "True", 65534)] {
        let variables = [
            ("RANK", "0"),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "n1"),
            ("MASTER_PORT", port),
            ("TORCHELASTIC_USE_AGENT_STORE", store),
        ];
        let said = find(&variables).unwrap_err().to_string();
        assert!(said.contains(&format!("MASTER_PORT is {port}")), "{said}");
        assert!(said.contains(&format!("1 to {most}")), "{said}");
    }
    let word = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", "http")];
    assert!(find(&word).unwrap_err().to_string().contains("MASTER_PORT is \"http\""));
    for (variables, want) in [
        ([("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is \"x\""),
        ([("RANK", "2"), ("WORLD_SIZE", "2")], "RANK is 2 and WORLD_SIZE is 2"),
    ] {
        assert!(find(&variables).unwrap_err().to_string().contains(want));
    }
}

#[test]
fn slurms_lists_begin_with_their_first_host() {
    for (list, first) in [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[03-07,9],login", "gpu03"),
        ("n[1,3]-ib,x", "n1-ib"),
        ("rack2n[10-11]", "rack2n10"),
    ] {
        assert_eq!(first_host(list), first);
    }
}

#[test]
fn processes_a_machine_are_compared_with_what_was_asked_for() {
    let found = || find(&OMPI).unwrap();
    assert_eq!(role(None, None, "-").unwrap(), Role::Alone);
    assert!(matches!(role(None, Some(3), "-").unwrap(), Role::Spawn { count: 3, first: 0, world: 3, .. }));
    assert!(matches!(role(found(), None, "-").unwrap(), Role::Rank(f) if place(&f) == [5, 8, 1, 4]));
    assert!(matches!(role(found(), Some(4), "-").unwrap(), Role::Rank(f) if place(&f) == [5, 8, 1, 4]));
    assert!(matches!(role(found(), Some(4), "-").unwrap(), Role::Rank(f) if f.whole));
    assert!(
        matches!(role(found(), Some(2), "-").unwrap(), Role::Rank(f) if place(&f) == [3, 4, 1, 2] && !f.whole)
    );
    assert_eq!(role(found(), Some(1), "-").unwrap(), Role::Leave);
    let message = role(found(), Some(8), "--gpus").unwrap_err().to_string();
    assert!(message.contains("--gpus 8") && message.contains("4 were started here"), "{message}");
    let mut one_a_node = found().unwrap();
    one_a_node.place = Place { rank: 1, world: 2, local_rank: 0, local_world: 1, host: "h".into() };
    let Role::Spawn { count, first, world, .. } = role(Some(one_a_node), Some(8), "-").unwrap() else {
        panic!("it spawns");
    };
    assert_eq!((count, first, world), (8, 8, 16));
    let mut in_turn = found().unwrap();
    in_turn.place.local_rank = 2;
    assert!(role(Some(in_turn), Some(2), "-").unwrap_err().to_string().contains("--map-by slot"));
}
