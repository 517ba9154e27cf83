//! One-shot commands with nothing but their environment.

use sluice_shared::ids::OrderId;
use sluice_testkit::{PrivateRedis, required};

use crate::harness::process::program;
use crate::harness::{TestDatabase, Vhost};

/// Exit code and everything that was said.
async fn run(words: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut program = program();
    program.args(words).envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_runs_on_either_kind_of_variable_alone() {
    let (db, redis, vhost) = (TestDatabase::new().await, PrivateRedis::start(), Vhost::new().await);
    let (database, redis) = (db.url.as_str(), redis.url());
    let (amqp, management) = (vhost.url.as_str(), required("SLUICE_TEST_AMQP_MANAGEMENT_URL"));
    let long = [("SLUICE__DATABASE__URL", database), ("SLUICE__REDIS__URL", &redis)];
    let short = [("SLUICE_DATABASE_URL", database), ("SLUICE_REDIS_URL", &redis)];
    let long_amqp = [("SLUICE__AMQP__URL", amqp), ("SLUICE__AMQP__MANAGEMENT_URL", &management)];
    let short_amqp = [("SLUICE_AMQP_URL", amqp), ("SLUICE_AMQP_MANAGEMENT_URL", &management)];
    let nobody = OrderId::mint(1, 0).to_string();
    // Empty is not set.
    let empty = [("SLUICE_DATABASE_URL", ""), ("SLUICE_REDIS_URL", ""), ("SLUICE_AMQP_URL", "")];
    for environment in [&long[..], &short, &[&long[..], &empty].concat()] {
        let told = run(&["migrate"], &environment[..1]).await;
        assert_eq!(told, (0, "the database has this version's schema\n".to_owned()), "{environment:?}");
        let (code, said) = run(&["edges"], environment).await;
        assert_eq!((code, said.as_str()), (0, "no edge is registered\n"), "{environment:?}");
        let (code, said) = run(&["explain", &nobody], environment).await;
        assert!(code == 1 && said.contains("no store knows this order"), "{environment:?}: {said}");
        let (code, said) = run(&["audit"], environment).await;
        assert!(code == 0 && !said.contains("WARN"), "{environment:?}: {code} {said}");
    }
    for environment in [&long_amqp[..], &short_amqp, &[&long_amqp[..], &empty[2..]].concat()] {
        let shards = ("SLUICE__ORDERS__SHARDS", "2");
        let (code, said) = run(&["topology", "plan"], &[environment, &[shards]].concat()).await;
        assert!((0..=1).contains(&code) && !said.contains("sluice-worker topology"), "{code} {said}");
    }
    // Nobody guesses at RabbitMQ.
    let (code, said) = run(&["topology", "plan"], &long).await;
    assert!(code != 0 && said.contains("SLUICE_AMQP_MANAGEMENT_URL"), "{code} {said}");
    let (code, said) = run(&["migrate"], &[("SLUICE__DATABASE__URL", "nonsense")]).await;
    assert!(code == 64 && said.contains("database.url: must be a URL"), "{code} {said}");
}
