//! What people write: reviews, posts and subjects of tickets, in Chinese and English, composed of what is said about
//! an aspect, how it is felt, and the style of the writer.

use crate::dice::Dice;
use crate::service::Topic;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aspect {
    Delivery,
    Quality,
    Size,
    Price,
    Service,
    Packaging,
}

impl Aspect {
    const ALL: [Self; 6] = [Self::Delivery, Self::Quality, Self::Size, Self::Price, Self::Service, Self::Packaging];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feeling {
    Bad,
    Mixed,
    Good,
}

impl Feeling {
    pub(crate) fn of_stars(stars: i64) -> Self {
        match stars {
            ..=2 => Self::Bad,
            3 => Self::Mixed,
            _ => Self::Good,
        }
    }
}

/// A review of one to four sentences; a known trouble is always among them.
pub(crate) fn review(
    dice: &mut Dice,
    feeling: Feeling,
    known: Option<Aspect>,
    category: &str,
    english: bool,
) -> String {
    let worn = matches!(category, "apparel" | "shoes" | "sports");
    let mut aspects: Vec<Aspect> = known.into_iter().collect();
    let wanted = 1 + dice.below(3);
    while aspects.len() < crate::number::index(wanted) {
        let aspect = *dice.pick(&Aspect::ALL);
        if !aspects.contains(&aspect) && (worn || aspect != Aspect::Size) {
            aspects.push(aspect);
        }
    }
    let mut sentences: Vec<&str> = Vec::with_capacity(5);
    if dice.chance(0.45) {
        sentences.push(pick(dice, opening(feeling, english)));
    }
    for (place, aspect) in aspects.into_iter().enumerate() {
        // The mixed praise one thing and blame another; the rest agree with themselves most of the time.
        let good = match feeling {
            Feeling::Good => known != Some(aspect) || dice.chance(0.3),
            Feeling::Bad => known.is_some() && place > 0 && dice.chance(0.2),
            Feeling::Mixed => place % 2 == 1,
        };
        sentences.push(pick(dice, said(aspect, good, english)));
    }
    if dice.chance(0.5) {
        sentences.push(pick(dice, closing(feeling, english)));
    }
    finish(dice, &sentences, feeling, english)
}

/// A post on a social platform, which names the shop unless it only talks about shopping.
pub(crate) fn post(dice: &mut Dice, feeling: Feeling, mentions: bool, english: bool) -> String {
    let shop = if mentions {
        pick(
            dice,
            if english {
                &["@HaizaoMall", "Haizao Mall", "#HaizaoMall"]
            } else {
                &["@海藻商城", "海藻商城", "#海藻商城#"]
            },
        )
    } else {
        pick(
            dice,
            if english {
                &["online shopping", "this week's haul", "the sales"]
            } else {
                &["最近网购", "这次囤货", "逛街"]
            },
        )
    };
    let aspect = *dice.pick(&[Aspect::Delivery, Aspect::Quality, Aspect::Price, Aspect::Service, Aspect::Packaging]);
    let lead = pick(dice, post_lead(feeling, english));
    let detail = pick(dice, said(aspect, feeling == Feeling::Good, english));
    let mut sentences = vec![lead, detail];
    if dice.chance(0.4) {
        sentences.push(pick(dice, closing(feeling, english)));
    }
    let body = finish(dice, &sentences, feeling, english);
    format!("{shop} {body}")
}

/// The first line of a ticket.
pub(crate) fn subject(dice: &mut Dice, topic: Topic, complaint: bool, english: bool) -> String {
    let lines: &[&str] = match (topic, english) {
        (Topic::Delivery, false) => &[
            "快递一直没有更新",
            "包裹显示签收但我没收到",
            "承诺的送达时间已经过了",
            "想改一下收货地址",
            "物流卡在中转站三天了",
        ],
        (Topic::Delivery, true) => &[
            "Parcel has not moved for days",
            "Marked delivered but nothing arrived",
            "Promised date has passed",
            "Please change my delivery address",
        ],
        (Topic::Quality, false) => {
            &["收到的商品有破损", "和图片描述不一样", "用了两天就坏了", "生产日期太旧", "尺码发错了"]
        }
        (Topic::Quality, true) => {
            &["Item arrived damaged", "Not as described", "Stopped working after two days", "Wrong size was sent"]
        }
        (Topic::Refund, false) => &["退款什么时候到账", "说好七天退款还没到", "退款金额不对", "申请退款没人处理"],
        (Topic::Refund, true) => {
            &["When will my refund arrive", "Refund is later than promised", "Refund amount is wrong"]
        }
        (Topic::Account, false) => {
            &["积分没有到账", "会员等级怎么降了", "登录不了账号", "想换绑手机号", "怎么注销账号"]
        }
        (Topic::Account, true) => {
            &["Points are missing", "Why was my tier lowered", "Cannot sign in", "How do I close my account"]
        }
        (Topic::Other, false) => {
            &["发票怎么开", "优惠券用不了", "想问一下活动规则", "商品什么时候补货", "你们短信太多了"]
        }
        (Topic::Other, true) => {
            &["How do I get an invoice", "Coupon is not accepted", "When is this back in stock", "Too many messages"]
        }
    };
    let line = pick(dice, lines);
    let prefix = match (complaint, english) {
        (true, false) if dice.chance(0.5) => pick(dice, &["投诉：", "第二次联系了，", "非常失望，"]),
        (true, true) if dice.chance(0.5) => {
            pick(dice, &["Complaint: ", "Second time I write: ", "Very disappointed: "])
        }
        (false, false) if dice.chance(0.3) => "你好，",
        (false, true) if dice.chance(0.3) => "Hello, ",
        _ => "",
    };
    format!("{prefix}{line}")
}

fn pick(dice: &mut Dice, lines: &'static [&'static str]) -> &'static str {
    dice.word(lines)
}

fn finish(dice: &mut Dice, sentences: &[&str], feeling: Feeling, english: bool) -> String {
    let mut text = String::with_capacity(160);
    let (between, end) = match (english, dice.below(5)) {
        (true, 0) => (" ", "!"),
        (true, _) => (" ", "."),
        (false, 0) => ("，", ""),
        (false, 1) => (" ", ""),
        (false, 2) => ("！", "！"),
        (false, _) => ("，", "。"),
    };
    for (place, sentence) in sentences.iter().enumerate() {
        if place > 0 {
            text.push_str(if english { "." } else { "" });
            text.push_str(between);
        }
        text.push_str(sentence);
    }
    text.push_str(end);
    if dice.chance(0.12) {
        text.push_str(match feeling {
            Feeling::Good => pick(dice, &["😊", "👍", "❤️", "🎉"]),
            Feeling::Mixed => pick(dice, &["😐", "🤔"]),
            Feeling::Bad => pick(dice, &["😡", "👎", "💔"]),
        });
    }
    if dice.chance(0.05) {
        text.push_str(pick(
            dice,
            if english {
                &["\nEdit: one week later, still the same."]
            } else {
                &["\n一周后追评：看法没变。"]
            },
        ));
    }
    if english && dice.chance(0.15) {
        text = text.to_lowercase();
    }
    text
}

fn opening(feeling: Feeling, english: bool) -> &'static [&'static str] {
    match (feeling, english) {
        (Feeling::Good, false) => {
            &["第三次回购了", "给家里人买的", "犹豫了很久终于下单", "朋友推荐来的", "一直在这家买", "满心欢喜地拆开"]
        }
        (Feeling::Mixed, false) => &["总体来说一般", "期待有点高了", "用了几天来评价", "凑单买的", "不好不坏"],
        (Feeling::Bad, false) => {
            &["真的很失望", "以前不是这样的", "第一次给差评", "老顾客也寒心了", "忍不住来说两句", "等了这么久就这"]
        }
        (Feeling::Good, true) => &[
            "Third time I buy this",
            "Bought it for my mother",
            "Happy with this one",
            "A friend recommended it",
            "Exactly what I was after",
        ],
        (Feeling::Mixed, true) => {
            &["It is all right", "Expected a little more", "Mixed feelings about this one", "Neither good nor bad"]
        }
        (Feeling::Bad, true) => &[
            "Really disappointed",
            "It used to be better here",
            "First bad review I write",
            "I wanted to like it",
            "Not what I paid for",
        ],
    }
}

fn closing(feeling: Feeling, english: bool) -> &'static [&'static str] {
    match (feeling, english) {
        (Feeling::Good, false) => &["会继续支持", "推荐给大家", "下次还来", "已经推荐给同事了", "值得入手"],
        (Feeling::Mixed, false) => &["先用着看看", "等活动再考虑", "希望能改进", "看个人需求吧"],
        (Feeling::Bad, false) => &["不会再买了", "建议大家谨慎", "准备换别家了", "已经申请退货", "以后不会来了"],
        (Feeling::Good, true) => {
            &["Will order again", "Warmly recommended", "Keep it up", "Five stars from the whole family"]
        }
        (Feeling::Mixed, true) => &["Might wait for the next sale", "Hope they improve", "We will see how it lasts"],
        (Feeling::Bad, true) => {
            &["Never again", "I am taking my money elsewhere", "Sent it back", "Buy it somewhere else"]
        }
    }
}

fn post_lead(feeling: Feeling, english: bool) -> &'static [&'static str] {
    match (feeling, english) {
        (Feeling::Good, false) => &["今天开箱超开心", "必须夸一夸", "又被种草了", "这波囤货很划算", "安利给姐妹们"],
        (Feeling::Mixed, false) => &["有人也买过吗", "说说真实感受", "活动规则看得头疼", "有好有坏吧"],
        (Feeling::Bad, false) => &["避雷", "气到不行", "客服能不能管管", "再也不想买了", "有没有人和我一样"],
        (Feeling::Good, true) => {
            &["Unboxing made my day", "Credit where it is due", "Best find of the month", "Sharing a good one"]
        }
        (Feeling::Mixed, true) => {
            &["Anyone else tried this", "Honest impressions", "The sale rules gave me a headache"]
        }
        (Feeling::Bad, true) => {
            &["Stay away", "So annoyed right now", "Is anybody answering over there", "Am I the only one"]
        }
    }
}

fn said(aspect: Aspect, good: bool, english: bool) -> &'static [&'static str] {
    match (aspect, good, english) {
        (Aspect::Delivery, true, false) => {
            &["物流很快，第二天就到了", "发货速度没得说", "快递小哥直接送上门", "比预计早到一天", "昨晚下单今天就收到"]
        }
        (Aspect::Delivery, false, false) => {
            &["快递慢得离谱", "说好三天到结果等了一周", "物流信息好几天不动", "包裹差点丢了", "催了两次才发货"]
        }
        (Aspect::Quality, true, false) => {
            &["质量比想象中好", "做工很细致", "用起来很顺手", "味道新鲜，家里人都喜欢", "料子很舒服"]
        }
        (Aspect::Quality, false, false) => &[
            "质量太差",
            "用了两次就坏了",
            "和图片完全不一样",
            "有一股刺鼻的味道",
            "收到就是破损的",
            "做工粗糙，线头很多",
        ],
        (Aspect::Size, true, false) => &["尺码很准", "大小刚刚好", "按平时的码买就行"],
        (Aspect::Size, false, false) => &["尺码偏小", "大了一圈没法穿", "尺码表完全不准", "版型很奇怪"],
        (Aspect::Price, true, false) => &["性价比很高", "用券之后很划算", "活动价真香", "同款里最便宜的一家"],
        (Aspect::Price, false, false) => {
            &["刚买完就降价", "价格偏贵", "优惠券根本用不了", "满减算下来没便宜多少", "别家便宜三十多"]
        }
        (Aspect::Service, true, false) => &["客服很耐心", "售后处理很快", "有问必答", "换货很爽快"],
        (Aspect::Service, false, false) => {
            &["客服态度敷衍", "问了半天没人理", "售后一直踢皮球", "退款拖了半个月", "只会发模板回复"]
        }
        (Aspect::Packaging, true, false) => &["包装很用心", "包得严严实实", "礼盒很精致，送人有面子"],
        (Aspect::Packaging, false, false) => &["包装太随便", "盒子都压扁了", "里面没有任何缓冲", "漏了一包湿漉漉的"],
        (Aspect::Delivery, true, true) => {
            &["It arrived the next morning", "Shipping was quick and well tracked", "Came a day earlier than promised"]
        }
        (Aspect::Delivery, false, true) => &[
            "It took more than a week to arrive",
            "Tracking did not move for days",
            "Delivery came far later than promised",
            "I had to chase the courier twice",
        ],
        (Aspect::Quality, true, true) => &[
            "The quality is better than I expected",
            "Well made and pleasant to use",
            "Feels solid and looks good",
            "Tastes fresh",
        ],
        (Aspect::Quality, false, true) => &[
            "It broke after the second use",
            "Looks nothing like the pictures",
            "The material feels cheap",
            "It smells of plastic",
            "Arrived with a crack",
        ],
        (Aspect::Size, true, true) => &["True to size", "Fits perfectly", "The size chart is right"],
        (Aspect::Size, false, true) => &["Runs two sizes small", "Far too wide", "The size chart is no help at all"],
        (Aspect::Price, true, true) => {
            &["Great value with the coupon", "Cheaper than anywhere else", "Worth every yuan"]
        }
        (Aspect::Price, false, true) => &[
            "The price dropped the day after I bought it",
            "Overpriced for what it is",
            "The coupon would not apply",
            "Found it cheaper next door",
        ],
        (Aspect::Service, true, true) => {
            &["Support answered within minutes", "They exchanged it without fuss", "Friendly and patient staff"]
        }
        (Aspect::Service, false, true) => &[
            "Support only sends canned replies",
            "Nobody answers my messages",
            "The refund took half a month",
            "I was sent from one desk to the next",
        ],
        (Aspect::Packaging, true, true) => {
            &["Carefully packed", "The gift box is lovely", "Everything was well protected"]
        }
        (Aspect::Packaging, false, true) => {
            &["The box was crushed", "No padding at all", "It leaked all over the parcel"]
        }
    }
}
