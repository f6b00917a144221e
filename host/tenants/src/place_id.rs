//! Which place of which object storage this is: a number that is drawn once, by the first host that comes there.

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

/// The object right below the prefix: no tenant's path begins with a name that has a dot in it.
const NAME: &str = "larder.json";

/// A note that is larger is none.
pub(crate) const MAX_NOTE_BYTES: u64 = 1024;

/// What is noted of a place, in the object storage and in each cache folder that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlaceNote {
    format: u64,
    place: WriteId,
}

impl PlaceNote {
    pub(crate) fn new(place: WriteId) -> Self {
        Self { format: FORMAT, place }
    }

    /// Reads a note; `whose` says where it lies.
    pub(crate) fn parse(whose: &str, bytes: &[u8]) -> Result<WriteId> {
        let corrupt =
            |error| TenantError::corrupt(whose, format!("the note of which place this is: {error}"));
        let AnyFormat { format } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if format > FORMAT {
            return Err(TenantError::NewerFormat { key: whose.to_string(), format, supported: FORMAT });
        }
        Ok(serde_json::from_slice::<Self>(bytes).map_err(corrupt)?.place)
    }

    pub(crate) fn to_bytes(self) -> Result<Vec<u8>> {
        let failed = |error| TenantError::corrupt(NAME, format!("the note can't be written: {error}"));
        serde_json::to_vec(&self).map_err(failed)
    }
}

/// Makes sure that a cache folder belongs to the tenants of `remote`. What is in a folder of others' is neither sent
/// here nor taken for what is here, so nothing is written on either side before the two are compared.
///
/// `probe` runs between the comparison and the first write: a number can be given once only where conditions hold.
pub(crate) async fn settle(
    remote: &Remote,
    cache: &CacheFolder,
    probe: impl Future<Output = Result<()>>,
) -> Result<()> {
    let (recorded, found) = (cache.place()?, remote.place().await?);
    if let Some(recorded) = recorded
        && found != Some(recorded)
    {
        return Err(TenantError::OtherPlace {
            folder: cache.folder().display().to_string(),
            recorded: recorded.to_string(),
            found: found.map(|found| found.to_string()),
        });
    }
    probe.await?;
    if recorded.is_none() {
        let place = match found {
            Some(found) => found,
            None => remote.make_place().await?,
        };
        cache.record_place(place)?;
    }
    Ok(())
}

impl Remote {
    fn place_path(&self) -> ObjectPath {
        self.objects().path(NAME)
    }

    /// The number of the place; none where no host has given it one.
    async fn place(&self) -> Result<Option<WriteId>> {
        let path = self.place_path();
        let found = self.objects().get(&path, MAX_NOTE_BYTES).await?;
        found.map(|found| PlaceNote::parse(path.as_ref(), &found.bytes)).transpose()
    }

    /// Gives the place a number, unless another host was faster: then that is the number.
    async fn make_place(&self) -> Result<WriteId> {
        let (path, place) = (self.place_path(), WriteId::random());
        let bytes = Bytes::from(PlaceNote::new(place).to_bytes()?);
        let own = bytes.clone();
        match self.objects().create(&path, bytes, move |found| found == own, MAX_NOTE_BYTES).await? {
            Written::Done(_) => Ok(place),
            Written::Lost(Some(found)) => PlaceNote::parse(path.as_ref(), &found.bytes),
            Written::Lost(None) => {
                let reason = format!("{path} can neither be made nor read");
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
        let place = WriteId::random();
        let bytes = PlaceNote::new(place).to_bytes().unwrap();
        assert_eq!(PlaceNote::parse(NAME, &bytes).unwrap(), place);
        let newer = PlaceNote::parse(NAME, b"{\"format\":2,\"more\":1}").unwrap_err();
        assert!(matches!(newer, TenantError::NewerFormat { format: 2, supported: 1, .. }), "{newer}");
        for wrong in [&b""[..], b"{\"format\":1}", b"{\"format\":1,\"place\":\"x\"}", b"[1]"] {
            let error = PlaceNote::parse(NAME, wrong).unwrap_err();
            assert!(matches!(&error, TenantError::Corrupt { key, .. } if key == NAME), "{error}");
        }
    }
}
