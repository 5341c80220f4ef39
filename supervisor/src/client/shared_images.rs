//! Images that the hosts of a fleet share.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::image::{
    ImageImportReply, ImagePullRequest, ImageShareReply, ImageShareRequest, ImageUnshareReply,
    ImageUnshareRequest, ImagesRequest, SharedImagesReply,
};

use super::{Client, ClientError};

impl Client {
    /// What the fleet shares, page by page.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn shared_images(
        &self,
        host: &Token,
        deadline: Duration,
    ) -> Result<SharedImagesReply, ClientError> {
        let mut all = SharedImagesReply::default();
        let mut request = ImagesRequest { limit: Some(500), ..ImagesRequest::default() };
        loop {
            let page: SharedImagesReply = self.host(host, "image.shared", &request, deadline).await?;
            all.images.extend(page.images);
            match page.next_cursor {
                Some(cursor) if request.cursor.as_ref() != Some(&cursor) => request.cursor = Some(cursor),
                _ => return Ok(all),
            }
        }
    }

    /// Gives an image of a host to the fleet.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_share(
        &self,
        host: &Token,
        request: &ImageShareRequest,
        deadline: Duration,
    ) -> Result<ImageShareReply, ClientError> {
        self.host(host, "image.share", request, deadline).await
    }

    /// Takes a name of the fleet away.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_unshare(
        &self,
        host: &Token,
        name: Token,
        deadline: Duration,
    ) -> Result<ImageUnshareReply, ClientError> {
        self.host(host, "image.unshare", &ImageUnshareRequest { name }, deadline).await
    }

    /// Brings an image that the fleet shares into the store of a host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_pull(
        &self,
        host: &Token,
        request: &ImagePullRequest,
        deadline: Duration,
    ) -> Result<ImageImportReply, ClientError> {
        self.host(host, "image.pull", request, deadline).await
    }
}
