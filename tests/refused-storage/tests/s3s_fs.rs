//! The negative control of the storage probe. `s3s-fs`, a real S3 server, honours conditions of
//! writes that come one after the other, but lets several concurrent writes succeed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use larder_tenants::{TenantError, TenantsBuilder, TenantsDsn};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;

const KEY: &str = "key";
const SECRET: &str = "secret";
const BUCKET: &str = "tenants";

const STARTS: usize = 10;

/// Names the server for the child process.
const STORE: &str = "LARDER_REFUSED_STORE";

/// Starts the server on a loopback port. It lives as long as the runtime. Returns its address.
async fn serve(folder: &Path) -> String {
    // A bucket is a subfolder.
    std::fs::create_dir(folder.join(BUCKET)).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, builder.build()));
    format!("http://{address}")
}

async fn accept(listener: TcpListener, service: S3Service) {
    while let Ok((connection, _)) = listener.accept().await {
        let served = http1::Builder::new().serve_connection(TokioIo::new(connection), service.clone());
        // A client that disconnects ends only its own connection.
        tokio::spawn(async { drop(served.await) });
    }
}

/// Opens a host on the server. It needs its own process, as credentials come from the environment.
#[tokio::test]
async fn child_that_opens_tenants() {
    let Ok(dsn) = std::env::var(STORE) else { return };
    let cache = tempfile::tempdir().unwrap();
    let builder = TenantsBuilder::from_dsn(&TenantsDsn::parse(&dsn).unwrap()).unwrap();
    let error = builder.cache_folder(cache.path()).open().await.unwrap_err();
    let TenantError::NoConditions { reason } = &error else { panic!("{error:?}") };
    // The probe must fail on the condition of concurrent writes, as the server honours sequential
    // ones.
    assert_eq!(reason, "it let more than one of several concurrent writes succeed");
    assert_eq!(
        error.to_string(),
        "this object storage can't keep tenants, as it does not honour conditional writes: it let more than one of \
         several concurrent writes succeed; use one that supports atomic puts with If-None-Match and If-Match"
    );
    println!("\nrefused");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_lets_two_writers_at_once_succeed_is_refused_at_every_start() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = serve(folder.path()).await;
    let dsn = format!("tenants+s3://{BUCKET}/plat?endpoint={endpoint}&region=us-east-1");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_opens_tenants", "--nocapture", "--test-threads=1"])
            .env(STORE, &dsn)
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .output()
            .unwrap()
    };
    // Whether two writers overlap is chance, and none of several starts may miss it.
    for number in 0..STARTS {
        let output = tokio::task::block_in_place(start);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.lines().any(|line| line == "refused"),
            "start {number}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let left = files_below(&folder.path().join(BUCKET));
    assert!(left.is_empty(), "{left:?}");
}
