//! The templates of a host, as a namespace sees them.

use drover_schemas::body::template::{TemplateGetRequest, TemplateListReply, TemplateReply};
use drover_schemas::{ErrorBody, Token};

use crate::services::Services;

pub(super) fn list(services: &Services, namespace: &Token) -> TemplateListReply {
    let templates = services.templates.all(namespace);
    TemplateListReply {
        host: services.host.clone(),
        templates: templates.into_iter().map(|template| template.summary.clone()).collect(),
    }
}

pub(super) fn get(
    services: &Services,
    namespace: &Token,
    asked: &TemplateGetRequest,
) -> Result<TemplateReply, ErrorBody> {
    let template = services.templates.get(namespace, &asked.name)?;
    let mut spec = template.spec.clone();
    spec.user_data = None;
    Ok(TemplateReply {
        host: services.host.clone(),
        template: template.summary.clone(),
        spec,
        values: template.values(),
    })
}
