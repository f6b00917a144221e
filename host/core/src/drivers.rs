//! The set of drivers, which finds the one that a data-source name is meant for.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_schema::SchemaMigrator;

use crate::backend::Backend;
use crate::driver::Driver;
use crate::error::Error;

/// A set of drivers.
///
/// ```
/// let drivers = larder_core::Drivers::with_in_memory();
/// assert_eq!(drivers.names(), ["in-memory"]);
/// ```
#[derive(Clone, Default)]
pub struct Drivers {
    drivers: BTreeMap<&'static str, Arc<dyn Driver>>,
}

impl std::fmt::Debug for Drivers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Drivers").field(&self.names()).finish()
    }
}

/// The reason why a driver or a data-source name was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// No driver accepts the data-source name.
    #[error("no driver for the data-source name {given:?}; use one of: {}", registered.join(", "))]
    Unknown {
        /// The scheme with its colon, or `…` if there is none. The rest may hold a password.
        given: String,
        /// The names of the drivers, sorted.
        registered: Vec<&'static str>,
    },
    /// A driver of this name is registered already.
    #[error("a driver named {0:?} is registered already")]
    Duplicate(&'static str),
    /// The driver could not open the store.
    #[error("could not open a store with the driver {driver:?}")]
    Open {
        /// The name of the driver.
        driver: &'static str,
        /// The driver's error.
        #[source]
        error: Error,
    },
}

impl Drivers {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a set with the in-memory driver, which accepts `in-memory:`.
    pub fn with_in_memory() -> Self {
        let mut drivers = Self::new();
        drivers.drivers.insert("in-memory", Arc::new(crate::in_memory::InMemoryDriver));
        drivers
    }

    /// Adds a driver.
    ///
    /// # Errors
    ///
    /// [`DriverError::Duplicate`] if its name is taken. The set is then unchanged.
    pub fn register(&mut self, driver: impl Driver) -> Result<&mut Self, DriverError> {
        let name = driver.name();
        if self.drivers.contains_key(name) {
            return Err(DriverError::Duplicate(name));
        }
        self.drivers.insert(name, Arc::new(driver));
        Ok(self)
    }

    /// The names of the drivers, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        self.drivers.keys().copied().collect()
    }

    /// Opens a backend and applies larder's own schema migrations to it.
    ///
    /// # Errors
    ///
    /// - [`DriverError::Unknown`] if no driver accepts the data-source name. It lists the drivers.
    /// - [`DriverError::Open`] if the driver fails; see [`Driver::open`].
    pub async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>, DriverError> {
        let driver = self.driver(dsn)?;
        driver.open(dsn).await.map_err(|error| DriverError::Open { driver: driver.name(), error })
    }

    /// Opens an existing backend for reading only.
    ///
    /// This creates, migrates and writes nothing. Writes to the backend fail with
    /// [`Error::AccessDenied`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use larder_core::{Error, HandleOptions, Mode, Store};
    ///
    /// let backend = larder_core::Drivers::with_in_memory().open_read_only("in-memory:").await?;
    /// let handle = Store::builder_shared(backend).build()?.handle(HandleOptions::default());
    /// let mut transaction = handle.begin(Mode::Update)?;
    /// transaction.put("notes".into(), "a".into(), b"hello".to_vec())?;
    /// assert!(matches!(transaction.commit().await, Err(Error::AccessDenied(_))));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`DriverError::Unknown`] if no driver accepts the data-source name. It lists the drivers.
    /// - [`DriverError::Open`] if the driver fails; see [`Driver::open_read_only`].
    pub async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>, DriverError> {
        let driver = self.driver(dsn)?;
        driver.open_read_only(dsn).await.map_err(|error| DriverError::Open { driver: driver.name(), error })
    }

    /// Returns a migrator for larder's own tables in a database, without opening it.
    ///
    /// Returns `None` if the backend has no tables that outlive the process, such as the in-memory
    /// one.
    ///
    /// ```
    /// let drivers = larder_core::Drivers::with_in_memory();
    /// assert!(drivers.migrator("in-memory:")?.is_none());
    /// # Ok::<(), larder_core::DriverError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`DriverError::Unknown`] if no driver accepts the data-source name. It lists the drivers.
    /// - [`DriverError::Open`] if the data-source name is malformed.
    pub fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator<Error = Error>>>, DriverError> {
        let driver = self.driver(dsn)?;
        driver.migrator(dsn).map_err(|error| DriverError::Open { driver: driver.name(), error })
    }

    fn driver(&self, dsn: &str) -> Result<&dyn Driver, DriverError> {
        let driver = self.drivers.values().find(|driver| driver.accepts(dsn));
        driver.map(AsRef::as_ref).ok_or_else(|| DriverError::Unknown {
            given: scheme(dsn).unwrap_or("…").to_string(),
            registered: self.names(),
        })
    }
}

/// The scheme of a data-source name, with its colon.
fn scheme(dsn: &str) -> Option<&str> {
    let scheme = dsn.split_inclusive(':').next()?;
    let name = scheme.strip_suffix(':')?;
    let is_of_one = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let is_scheme =
        name.bytes().all(is_of_one) && name.starts_with(|first: char| first.is_ascii_alphabetic());
    is_scheme.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    struct Failing(&'static str);

    #[async_trait]
    impl Driver for Failing {
        fn name(&self) -> &'static str {
            self.0
        }

        fn accepts(&self, dsn: &str) -> bool {
            dsn.starts_with(self.0)
        }

        async fn open(&self, _: &str) -> Result<Arc<dyn Backend>, Error> {
            Err(Error::Closed)
        }

        async fn open_read_only(&self, _: &str) -> Result<Arc<dyn Backend>, Error> {
            Err(Error::Closed)
        }
    }

    #[tokio::test]
    async fn an_unknown_driver_says_which_there_are_and_keeps_the_password() {
        let mut drivers = Drivers::with_in_memory();
        drivers.register(Failing("a-driver")).unwrap();
        let error = drivers.open("mysql://ann:secret@host/db").await.err().unwrap();
        let expected = "no driver for the data-source name \"mysql:\"; use one of: a-driver, in-memory";
        assert_eq!(error.to_string(), expected);
        for dsn in
            [" host=h password=hunter2", "HOST=h password=hunter2:", "hunter2", "a/hunter2:b", ":hunter2"]
        {
            let error = drivers.open(dsn).await.err().unwrap();
            let expected = "no driver for the data-source name \"…\"; use one of: a-driver, in-memory";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_driver_registered_twice_is_refused_and_names_are_sorted() {
        let mut drivers = Drivers::with_in_memory();
        drivers.register(Failing("z")).unwrap().register(Failing("b")).unwrap();
        assert!(matches!(drivers.register(Failing("z")), Err(DriverError::Duplicate("z"))));
        assert_eq!(drivers.names(), ["b", "in-memory", "z"]);
    }

    #[tokio::test]
    async fn the_drivers_own_error_is_reachable() {
        let mut drivers = Drivers::new();
        drivers.register(Failing("f")).unwrap();
        let Err(DriverError::Open { driver, error }) = drivers.open("f:x").await else { panic!("opened") };
        assert_eq!(driver, "f");
        assert!(matches!(error, Error::Closed));
        let looked = drivers.open_read_only("f:x").await;
        assert!(matches!(looked, Err(DriverError::Open { driver: "f", error: Error::Closed })));
    }
}
