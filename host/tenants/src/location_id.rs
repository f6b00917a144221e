//! The id of a location in object storage, which the first host there draws.

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TenantError};
use crate::head::AnyFormat;
use crate::local::CacheFolder;
use crate::objects::Written;
use crate::remote::Remote;
use crate::write_id::WriteId;

const FORMAT: u64 = 1;

/// The object directly below the prefix. No tenant's path begins with a name that contains a dot.
const NAME: &str = "larder.json";

/// The largest valid record, in bytes.
pub(crate) const MAX_NOTE_BYTES: u64 = 1024;

/// The record of a location, in object storage and in each cache folder that belongs to the
/// location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocationNote {
    format: u64,
    #[serde(rename = "place")]
    location: WriteId,
}

impl LocationNote {
    pub(crate) fn new(location: WriteId) -> Self {
        Self { format: FORMAT, location }
    }

    /// Parses a record. `whose` is its path, for errors.
    pub(crate) fn parse(whose: &str, bytes: &[u8]) -> Result<WriteId> {
        let corrupt =
            |error| TenantError::corrupt(whose, format!("the record of the location is invalid: {error}"));
        let AnyFormat { format } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if format > FORMAT {
            return Err(TenantError::NewerFormat { key: whose.to_string(), format, supported: FORMAT });
        }
        Ok(serde_json::from_slice::<Self>(bytes).map_err(corrupt)?.location)
    }

    pub(crate) fn to_bytes(self) -> Result<Vec<u8>> {
        let failed = |error| {
            TenantError::corrupt(NAME, format!("the record of the location can't be written: {error}"))
        };
        serde_json::to_vec(&self).map_err(failed)
    }
}

/// Makes sure that a cache folder belongs to the location of `remote`. A cache folder of another
/// location must neither be sent here nor count as data of this location, so nothing is written on
/// either side before both ids have been compared.
///
/// `probe` runs between the comparison and the first write, because an id can only be created once
/// if conditional puts work.
pub(crate) async fn settle(
    remote: &Remote,
    cache: &CacheFolder,
    probe: impl Future<Output = Result<()>>,
) -> Result<()> {
    let (recorded, found) = (cache.location()?, remote.location().await?);
    if let Some(recorded) = recorded
        && found != Some(recorded)
    {
        return Err(TenantError::OtherLocation {
            folder: cache.folder().display().to_string(),
            recorded: recorded.to_string(),
            found: found.map(|found| found.to_string()),
        });
    }
    probe.await?;
    if recorded.is_none() {
        let location = match found {
            Some(found) => found,
            None => remote.make_location().await?,
        };
        cache.record_location(location)?;
    }
    Ok(())
}

impl Remote {
    fn location_path(&self) -> ObjectPath {
        self.objects().path(NAME)
    }

    /// The id of the location. `None` if no host has created one.
    async fn location(&self) -> Result<Option<WriteId>> {
        let path = self.location_path();
        let found = self.objects().get(&path, MAX_NOTE_BYTES).await?;
        found.map(|found| LocationNote::parse(path.as_ref(), &found.bytes)).transpose()
    }

    /// Creates the id of the location. Returns the existing one if another host came first.
    async fn make_location(&self) -> Result<WriteId> {
        let (path, location) = (self.location_path(), WriteId::random());
        let bytes = Bytes::from(LocationNote::new(location).to_bytes()?);
        let own = bytes.clone();
        match self.objects().create(&path, bytes, move |found| found == own, MAX_NOTE_BYTES).await? {
            Written::Done(_) => Ok(location),
            Written::Lost(Some(found)) => LocationNote::parse(path.as_ref(), &found.bytes),
            Written::Lost(None) => {
                let reason = format!("{path} can neither be created nor read");
                Err(TenantError::Unavailable { reason, cause: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_what_is_none_is_told_apart() {
        let location = WriteId::random();
        let bytes = LocationNote::new(location).to_bytes().unwrap();
        assert_eq!(LocationNote::parse(NAME, &bytes).unwrap(), location);
        let newer = LocationNote::parse(NAME, b"{\"format\":2,\"more\":1}").unwrap_err();
        assert!(matches!(newer, TenantError::NewerFormat { format: 2, supported: 1, .. }), "{newer}");
        for wrong in [&b""[..], b"{\"format\":1}", b"{\"format\":1,\"place\":\"x\"}", b"[1]"] {
            let error = LocationNote::parse(NAME, wrong).unwrap_err();
            assert!(matches!(&error, TenantError::Corrupt { key, .. } if key == NAME), "{error}");
        }
    }
}
