//! What is said at the service desk, in Chinese and English.

use crate::dice::Dice;
use crate::messages::Conversation;
use crate::service::{Topic, push_ticket_id};

/// The request: its subject, what happened, what is wanted, and perhaps how to reach the writer.
pub(crate) fn request(dice: &mut Dice, about: &Conversation<'_>) -> String {
    let english = about.english;
    let (end, between) = if english { (".", " ") } else { ("。", "") };
    let mut text = String::with_capacity(240);
    let mut say = |sentence: &str| {
        if !text.is_empty() {
            text.push_str(between);
        }
        text.push_str(sentence);
        text.push_str(end);
    };
    say(about.subject);
    if let Some(order) = about.order.filter(|_| dice.chance(0.5)) {
        let order = order.text();
        say(&if english { format!("It is about order {order}") } else { format!("订单号是{order}") });
    }
    say(dice.word(circumstance(about.topic, english)));
    if dice.chance(0.6) {
        say(dice.word(wish(about.complaint, english)));
    }
    if dice.chance(0.12) {
        let phone = about.phone;
        say(&if english { format!("You can reach me on {phone}") } else { format!("我的电话是{phone}") });
    }
    text
}

/// What the desk's software answers at once.
pub(crate) fn receipt(ticket: u64, english: bool) -> String {
    let mut id = Vec::with_capacity(17);
    push_ticket_id(&mut id, ticket);
    let id = String::from_utf8_lossy(&id);
    if english {
        format!("We have received your request {id}. An agent will answer you soon.")
    } else {
        format!("您的请求已收到，编号{id}，客服会尽快回复您。")
    }
}

pub(crate) fn first_answer(dice: &mut Dice, topic: Topic, english: bool) -> String {
    let greeting = dice.word(if english {
        &["Hello, sorry for the trouble.", "Thank you for writing to us.", "Hello, this is Lin, I am looking into it."]
    } else {
        &["您好，很抱歉给您带来不便。", "亲，您的问题已经收到。", "您好，我是客服小林，马上为您处理。"]
    });
    let step = dice.word(match (topic, english) {
        (Topic::Delivery, false) => &["已经联系承运方核实，请您稍等。", "我先查一下包裹的位置。"],
        (Topic::Delivery, true) => &["I have asked the carrier where it is.", "Let me trace the parcel first."],
        (Topic::Quality, false) => &["方便的话请补充几张照片。", "已为您登记售后申请。"],
        (Topic::Quality, true) => &["Could you send a few photos?", "I have opened a return for you."],
        (Topic::Refund, false) => &["退款已经提交财务核对。", "我先确认一下退款的进度。"],
        (Topic::Refund, true) => &["Our accounts team is checking the refund.", "Let me see how far the refund is."],
        (Topic::Account, false) => &["请您核对一下登录的手机号。", "已经转给会员部门核实。"],
        (Topic::Account, true) => &["Please check which number you sign in with.", "Our membership team has it now."],
        (Topic::Other, false) => &["相关规则我整理好发给您。", "我确认之后回复您。"],
        (Topic::Other, true) => &["I will send you the rules.", "Let me check and come back to you."],
    });
    if english { format!("{greeting} {step}") } else { format!("{greeting}{step}") }
}

/// What customers write while they wait.
pub(crate) fn question(dice: &mut Dice, complaint: bool, english: bool) -> &'static str {
    dice.word(match (complaint, english) {
        (false, false) => {
            &["好的，我等你们消息。", "请问什么时候能有结果？", "需要的信息已经补充了。", "现在进展如何？"]
        }
        (false, true) => &[
            "All right, I will wait.",
            "When can I expect an answer?",
            "I have added what you asked for.",
            "Any news?",
        ],
        (true, false) => {
            &["这个答复我不接受。", "同样的话已经听了三遍。", "我只想要一个解决办法。", "请换一位能做主的人来处理。"]
        }
        (true, true) => &[
            "I do not accept this answer.",
            "I have heard the same words three times now.",
            "All I want is a solution.",
            "Let me speak to somebody who can decide.",
        ],
    })
}

pub(crate) fn interim_answer(dice: &mut Dice, english: bool) -> &'static str {
    dice.word(if english {
        &[
            "I have marked it as urgent.",
            "We are waiting for a reply and will tell you at once.",
            "Sorry for the wait, I am asking the department in charge.",
        ]
    } else {
        &["已经为您加急。", "还在等对方回复，有结果第一时间告诉您。", "让您久等了，正在和相关部门确认。"]
    })
}

pub(crate) fn solution(dice: &mut Dice, topic: Topic, english: bool) -> &'static str {
    dice.word(match (topic, english) {
        (Topic::Delivery, false) => &["包裹已经重新派送，请您留意签收。", "已和承运方确认送达，感谢您的耐心。"],
        (Topic::Delivery, true) => {
            &["The parcel is on its way again, please look out for it.", "The carrier has confirmed the delivery."]
        }
        (Topic::Quality, false) => &["换货已经寄出，运费由我们承担。", "已为您办理退货，非常抱歉。"],
        (Topic::Quality, true) => {
            &["A replacement is on its way at our cost.", "We have arranged the return, with our apologies."]
        }
        (Topic::Refund, false) => &["退款已经原路退回，请您查收。", "差额已经补退给您。"],
        (Topic::Refund, true) => &["The refund has been paid out.", "We have paid the difference back to you."],
        (Topic::Account, false) => &["已经处理好，请您重新登录看看。", "积分已经补上，请您查看。"],
        (Topic::Account, true) => &["It is fixed, please sign in again.", "The points have been added."],
        (Topic::Other, false) => &["已经为您办好，感谢您的耐心。", "说明已经发给您，如有疑问欢迎再来。"],
        (Topic::Other, true) => &["It is done, thank you for your patience.", "I have sent you the details."],
    })
}

pub(crate) fn notice_of_solution(english: bool) -> &'static str {
    if english {
        "Your request has been closed. Please rate our service."
    } else {
        "您的工单已解决，期待您的评价。"
    }
}

/// Reminders get shorter of patience, from the first to the third.
pub(crate) fn reminder(place: usize, english: bool) -> &'static str {
    let lines: [&str; 3] = if english {
        ["Is there any news?", "Nobody has answered me for days.", "I will not buy here again."]
    } else {
        ["请问有进展了吗？", "已经好几天没有人回复我了。", "再没有答复，我以后不会来了。"]
    };
    lines[place.min(lines.len() - 1)]
}

fn circumstance(topic: Topic, english: bool) -> &'static [&'static str] {
    match (topic, english) {
        (Topic::Delivery, false) => &[
            "物流只显示揽收，之后就没有动静了",
            "打快递站的电话一直占线",
            "家里等着用，已经耽误了",
            "页面上写的和实际完全对不上",
        ],
        (Topic::Delivery, true) => &[
            "Since it was picked up there has been no news",
            "The courier does not pick up the phone",
            "We are waiting for it at home",
            "What the page says has nothing to do with what happens",
        ],
        (Topic::Quality, false) => &[
            "拆开时外包装是完好的，里面却有问题",
            "照片可以看得很清楚",
            "按说明书操作的，没有乱用",
            "和上次买的完全不是一个水平",
        ],
        (Topic::Quality, true) => &[
            "The box was fine, what was inside was not",
            "You can see it in the photos",
            "I followed the instructions to the letter",
            "The one I bought before was nothing like this",
        ],
        (Topic::Refund, false) => {
            &["申请已经通过，但是账户里没有收到", "之前的客服说三到五个工作日", "请核对一下实际退的金额"]
        }
        (Topic::Refund, true) => &[
            "It was approved but nothing has reached my account",
            "I was told three to five working days",
            "Please check the amount again",
        ],
        (Topic::Account, false) => {
            &["我是老会员了，以前没遇到过", "重新登录也试过了，还是不行", "短信验证码一直收不到"]
        }
        (Topic::Account, true) => &[
            "I have been a member for years",
            "I have signed out and in again",
            "The code by text message never comes",
        ],
        (Topic::Other, false) => &["帮助页面里没有找到说明", "页面提示不符合条件，但规则我看过了", "麻烦说得具体一点"],
        (Topic::Other, true) => {
            &["The help pages do not say", "I have read the rules and they should apply", "Please be specific"]
        }
    }
}

fn wish(complaint: bool, english: bool) -> &'static [&'static str] {
    match (complaint, english) {
        (false, false) => &["麻烦尽快处理", "希望今天能有结果", "谢谢"],
        (false, true) => &["Please have a look", "I would be glad of an answer today", "Thank you"],
        (true, false) => &["请给我一个明确的说法", "再不解决我就向平台投诉", "请你们主管联系我"],
        (true, true) => {
            &["I want a clear answer", "Otherwise I will take it to the platform", "Have your manager call me"]
        }
    }
}
