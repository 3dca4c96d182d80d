//! What customers say in public: reviews of products and posts that mention the shop.

use crate::behaviour::{Action, Channel, Event, Purpose};
use crate::calendar::SECOND_MS;
use crate::encode::Json;
use crate::ids::Kind;
use crate::life::{Life, Mood};
use crate::number::{self, whole};
use crate::orders::{Order, push_product};
use crate::rows::{Chunk, Source, push_scrambled};
use crate::text::{self, Aspect, Feeling};

impl Life<'_> {
    pub(crate) fn review(
        &mut self,
        chunk: &mut Chunk,
        order: &Order,
        product: u16,
        at_ms: i64,
        late: bool,
        faulty: bool,
    ) {
        let reviewed_at = at_ms / SECOND_MS * SECOND_MS;
        if reviewed_at >= self.world.window.end_ms {
            return;
        }
        let day = number::low32(self.world.window.day_of(reviewed_at).unsigned_abs());
        let mood = self.mood(day);
        let trouble = 1.9 * f64::from(u8::from(faulty)) + 0.8 * f64::from(u8::from(late));
        let feeling = 4.2 + 0.8 * self.satisfaction - trouble - mood.rating_loss + 0.85 * self.dice.normal();
        let stars = whole(feeling.round()).clamp(1, 5);
        let known = if faulty && self.dice.chance(0.75) {
            Some(Aspect::Quality)
        } else if late && self.dice.chance(0.75) {
            Some(Aspect::Delivery)
        } else {
            None
        };
        // Some write the contrary of what their stars say: by slip, or in irony.
        let told = if self.dice.chance(0.03) { 6 - stars } else { stars };
        let english = self.traits.english;
        let category = self.world.product(product).category;
        let text = text::review(&mut self.dice, Feeling::of_stars(told), known, category, english);
        let id = self.next_id(Kind::Review);
        let photos = i64::from(if self.dice.chance(0.3) { 1 + self.dice.poisson(1.2).min(8) } else { 0 });
        let code = self.world.product(product).code;
        let (world, person) = (self.world, &self.person);
        chunk.push(Source::Reviews, reviewed_at, |out| {
            Json::object(out, |json| {
                json.token("review_id", |out| push_review_id(out, id));
                json.token("order_id", |out| order.id.push(out));
                json.token("product_id", |out| push_product(out, code));
                json.utc("reviewed_at", reviewed_at);
                json.number("stars", stars);
                json.text("language", if english { "en" } else { "zh" });
                json.text("text", &text);
                json.number("photo_count", photos);
                if let Some(account) = order.account {
                    json.token("member_no", |out| person.push_member(out, world.ids, account));
                }
            });
        });
        let mut key = Vec::with_capacity(20);
        push_review_id(&mut key, id);
        chunk.truth(Source::Reviews, &key, Some(self.person.index));
        self.note_reviewed(chunk, order, product, reviewed_at, day);
    }

    /// The visit in which the review was written: one event.
    fn note_reviewed(&mut self, chunk: &mut Chunk, order: &Order, product: u16, reviewed_at: i64, day: u32) {
        let channel = if self.person.wechat && self.traits.channels[2] > self.traits.channels[1] {
            Channel::MiniProgram
        } else {
            Channel::App
        };
        let purpose = Purpose::Order {
            id: order.id,
            at_ms: reviewed_at,
            items: &[],
            value_cents: 0,
            coupon: false,
            signed_in: order.account.is_some(),
            account: order.account.unwrap_or(0),
        };
        let session = self.open_session(chunk, day, channel, &purpose);
        chunk.push_event(Event {
            time_ms: reviewed_at,
            session,
            number: 0,
            action: Action::Reviewed { product, order: order.id },
            signed_in: order.account.is_some(),
        });
    }

    pub(crate) fn speak_up(&mut self, chunk: &mut Chunk, day: u32, mood: Mood) {
        let extremity = 0.6 + (self.satisfaction - 0.35).abs();
        let yearly = 0.11 * self.traits.outspokenness * extremity * if mood.browse < 0.1 { 0.15 } else { 1.0 };
        if !self.dice.chance(yearly / 365.0) {
            return;
        }
        let posted_at = self.local_moment(day) / SECOND_MS * SECOND_MS;
        let platform = match self.dice.weighted(&[34.0, 32.0, if self.person.wechat { 22.0 } else { 0.0 }, 12.0]) {
            0 => "weibo",
            1 => "xiaohongshu",
            2 => "wechat",
            _ => "douyin",
        };
        let feeling = Feeling::of_stars(
            whole((3.7 + 0.9 * self.satisfaction - mood.rating_loss + 0.9 * self.dice.normal()).round()).clamp(1, 5),
        );
        let mentions = self.dice.chance(0.88);
        let english = self.traits.english;
        let text = text::post(&mut self.dice, feeling, mentions, english);
        let likes = whole(self.dice.log_normal(6.0, 1.6)).min(80_000);
        let reposts = whole(likes as f64 * self.dice.between(0.0, 0.3));
        let reach = likes * self.dice.range(12, 60) + self.dice.range(5, 400);
        let id = self.next_id(Kind::Post);
        let (world, person) = (self.world, &self.person);
        chunk.push(Source::SocialPosts, posted_at, |out| {
            Json::object(out, |json| {
                json.token("post_id", |out| push_post_id(out, id));
                json.text("platform", platform);
                json.utc("posted_at", posted_at);
                json.nested("author", |json| {
                    if platform == "wechat" {
                        json.token("unionid", |out| person.push_union(out, world.ids));
                        json.token("openid", |out| person.push_account_openid(out, world.ids));
                    }
                    json.token("handle", |out| person.push_handle(out, world));
                });
                json.text("language", if english { "en" } else { "zh" });
                json.text("text", &text);
                json.number("likes", likes);
                json.number("reposts", reposts);
                json.number("reach", reach);
                json.flag("mentions_brand", mentions);
            });
        });
        let mut key = Vec::with_capacity(20);
        push_post_id(&mut key, id);
        chunk.truth(Source::SocialPosts, &key, Some(self.person.index));
    }
}

fn push_review_id(out: &mut Vec<u8>, id: u64) {
    out.push(b'R');
    push_scrambled(out, id);
}

fn push_post_id(out: &mut Vec<u8>, id: u64) {
    out.extend_from_slice(b"PO");
    push_scrambled(out, id);
}
