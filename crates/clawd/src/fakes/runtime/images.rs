//! Images that are present, under which names, and who has containers of them.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::images::HostImage;
use claw_core::name::ImageRef;

use super::{FakeRuntime, State, refused};
use crate::ports::RuntimeError;

/// What every image takes on the disk.
pub(super) const IMAGE_BYTES: u64 = 900 << 20;

/// What is known of images beside their presence.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// Names of content that has another name of its own.
    aliases: BTreeMap<String, String>,
    /// Of containers that are not ours.
    strangers: BTreeSet<String>,
}

impl FakeRuntime {
    /// Somebody puts an image on the host by hand.
    pub fn load(&self, image: &str) {
        self.state.borrow_mut().present.insert(image.to_owned());
    }

    /// Somebody gives an image that is present another name.
    pub fn tag(&self, image: &str, name: &str) {
        let mut state = self.state.borrow_mut();
        let id = state.image_id(image);
        state.present.insert(name.to_owned());
        state.images.aliases.insert(name.to_owned(), id);
    }

    /// Somebody makes a container that has nothing to do with us.
    pub fn use_elsewhere(&self, image: &str) {
        self.state.borrow_mut().images.strangers.insert(image.to_owned());
    }

    /// Every name of an image that is present.
    #[must_use]
    pub fn present(&self) -> BTreeSet<String> {
        self.state.borrow().present.clone()
    }
}

impl State {
    fn image_id(&self, image: &str) -> String {
        self.images.aliases.get(image).cloned().unwrap_or_else(|| format!("id of {image}"))
    }

    fn is_used(&self, id: &str) -> bool {
        let ours = self.plans.iter().filter(|(name, _)| self.containers.contains_key(*name));
        let ours = ours.map(|(_, (plan, _))| plan.image.as_str());
        let strangers = self.images.strangers.iter().map(String::as_str);
        ours.chain(strangers).chain(self.trials.images()).any(|image| self.image_id(image) == id)
    }

    pub(super) fn host_image(&self, image: &str) -> Option<HostImage> {
        let id = self.present.contains(image).then(|| self.image_id(image))?;
        let used = self.is_used(&id);
        Some(HostImage { id, bytes: IMAGE_BYTES, used })
    }

    pub(super) fn remove_image(&mut self, image: &ImageRef) -> Result<u64, RuntimeError> {
        let Some(found) = self.host_image(image.as_str()) else { return Ok(0) };
        let others = self.present.iter().filter(|name| name.as_str() != image.as_str());
        let last = others.clone().all(|name| self.image_id(name) != found.id);
        if last && found.used {
            return Err(refused("removing what a container was made from"));
        }
        self.present.remove(image.as_str());
        self.images.aliases.remove(image.as_str());
        Ok(if last { found.bytes } else { 0 })
    }
}
