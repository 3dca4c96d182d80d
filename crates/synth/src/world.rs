//! What all customers have in common: the calendar, the assortment, the stores and the campaigns.

use crate::calendar::{self, DAY_MS, HOUR_MS, LOCAL_OFFSET_MS, MINUTE_MS, Window};
use crate::catalogue::Listing;
use crate::dice::{Dice, Stream};
use crate::ids::{Ids, Kind, mix};
use crate::number;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) customers: u64,
    pub(crate) window: Window,
    pub(crate) ids: Ids,
    /// Bits that number twice as many things as there are customers; keeps generated names short.
    pub(crate) bits: u32,
    /// How busy each day of the window is.
    pub(crate) seasons: Vec<f64>,
    pub(crate) products: Vec<Product>,
    pub(crate) stores: Vec<Store>,
    pub(crate) campaigns: Vec<Campaign>,
}

impl World {
    pub(crate) fn new(seed: u64, customers: u64, window: Window) -> Self {
        let mut dice = Dice::new(seed, Stream::World, 0);
        let first_day = (window.start_ms + LOCAL_OFFSET_MS).div_euclid(DAY_MS);
        Self {
            seed,
            customers,
            window,
            ids: Ids::new(seed),
            bits: (64 - (customers * 2).leading_zeros()).max(16),
            seasons: (0..i64::from(window.days)).map(|day| calendar::season(first_day + day)).collect(),
            products: products(&mut dice, seed),
            stores: stores(&mut dice, seed),
            campaigns: campaigns(&mut dice, window),
        }
    }

    pub(crate) fn product(&self, number: u16) -> &Product {
        &self.products[usize::from(number)]
    }
}

pub(crate) const CATEGORIES: [Category; 10] = [
    Category {
        name: "beauty",
        price: 128.0,
        share: 1.5,
        brands: &["Lumière", "花漾", "Skinlab", "玉颜"],
        things: &["保湿精华", "防晒霜", "口红", "面膜礼盒", "洁面乳", "眼霜"],
        searches: &["保湿 面霜", "口红 礼盒", "敏感肌 精华", "防晒"],
    },
    Category {
        name: "apparel",
        price: 169.0,
        share: 1.6,
        brands: &["Northwind", "素衣", "Urbanite", "木棉"],
        things: &["连衣裙", "羽绒服", "衬衫", "针织衫", "牛仔裤", "T恤"],
        searches: &["连衣裙 夏", "羽绒服 女", "纯棉 T恤", "衬衫 通勤"],
    },
    Category {
        name: "shoes",
        price: 259.0,
        share: 0.8,
        brands: &["Stride", "踏云", "Kestrel"],
        things: &["跑鞋", "小白鞋", "凉鞋", "短靴", "帆布鞋"],
        searches: &["跑鞋 男", "小白鞋", "短靴 女"],
    },
    Category {
        name: "electronics",
        price: 499.0,
        share: 0.6,
        brands: &["Voltix", "星河", "Nimbus"],
        things: &["蓝牙耳机", "充电宝", "机械键盘", "智能手表", "空气净化器"],
        searches: &["降噪 耳机", "充电宝 快充", "智能手表"],
    },
    Category {
        name: "home",
        price: 119.0,
        share: 1.1,
        brands: &["Hearth", "拾光", "Linen & Co"],
        things: &["四件套", "收纳箱", "香薰蜡烛", "保温杯", "台灯", "炒锅"],
        searches: &["四件套 纯棉", "收纳", "保温杯"],
    },
    Category {
        name: "food",
        price: 49.0,
        share: 1.6,
        brands: &["谷雨", "Bluebird", "老街坊"],
        things: &["坚果礼盒", "挂耳咖啡", "牛肉干", "燕麦片", "绿茶"],
        searches: &["坚果", "咖啡 挂耳", "年货 礼盒"],
    },
    Category {
        name: "fresh",
        price: 69.0,
        share: 1.0,
        brands: &["田野", "海岸", "果园直送"],
        things: &["车厘子", "三文鱼", "土鸡蛋", "牛排套餐", "有机蔬菜"],
        searches: &["车厘子", "牛排", "有机 蔬菜"],
    },
    Category {
        name: "baby",
        price: 139.0,
        share: 0.7,
        brands: &["小树苗", "Puddle", "安心妈妈"],
        things: &["纸尿裤", "婴儿湿巾", "奶瓶", "绘本", "连体衣"],
        searches: &["纸尿裤 L", "婴儿 湿巾", "奶瓶"],
    },
    Category {
        name: "sports",
        price: 189.0,
        share: 0.7,
        brands: &["Summit", "飞驰", "Kestrel"],
        things: &["瑜伽垫", "登山包", "速干衣", "羽毛球拍", "筋膜枪"],
        searches: &["瑜伽垫", "登山包 40L", "速干 T恤"],
    },
    Category {
        name: "pets",
        price: 89.0,
        share: 0.5,
        brands: &["Whiskers", "毛球", "汪喵"],
        things: &["猫粮", "狗粮", "猫砂", "宠物窝", "冻干零食"],
        searches: &["猫粮 无谷", "猫砂", "狗粮"],
    },
];

#[derive(Debug)]
pub(crate) struct Category {
    pub(crate) name: &'static str,
    price: f64,
    pub(crate) share: f64,
    brands: &'static [&'static str],
    things: &'static [&'static str],
    pub(crate) searches: &'static [&'static str],
}

pub(crate) const PRODUCTS_IN_CATEGORY: u16 = 60;

#[derive(Debug)]
pub(crate) struct Product {
    /// Digits behind `P` in the shop.
    pub(crate) code: u32,
    /// Digits behind `SKU` at the tills: another system, another numbering.
    pub(crate) sku: u32,
    pub(crate) listing: Listing,
    pub(crate) category: &'static str,
    pub(crate) brand: &'static str,
    pub(crate) name: String,
    pub(crate) price_cents: i64,
}

fn products(dice: &mut Dice, seed: u64) -> Vec<Product> {
    const SIZES: [&str; 6] = ["", " 升级款", " 家庭装", " 经典款", " 轻享版", " 新款"];
    let ids = Ids::new(seed);
    // Dice of its own: what the list lacks decides nothing else.
    let mut listing = Dice::new(seed, Stream::Catalogue, 0);
    let mut products = Vec::new();
    for category in &CATEGORIES {
        for _ in 0..PRODUCTS_IN_CATEGORY {
            let brand = *dice.pick(category.brands);
            let name = format!("{brand} {}{}", dice.pick(category.things), dice.pick(&SIZES));
            let price = dice.log_normal(category.price, 0.6).clamp(9.0, 6_000.0);
            // Prices end in .00, .90 or .99, as shelf prices do.
            let ending = *dice.pick(&[0, 0, 90, 99]);
            products.push(Product {
                code: 100_000 + number::small(products.len()) * 7,
                sku: number::low32(ids.scramble(Kind::Sku, products.len() as u64, 20)),
                listing: Listing::draw(&mut listing),
                category: category.name,
                brand,
                name,
                price_cents: number::whole(price) * 100 + ending,
            });
        }
    }
    products
}

/// The product at a share of its category's list, whose front sells best when shares are skewed.
pub(crate) fn product_at(category: usize, share: f64) -> u16 {
    let place = u16::try_from(number::whole(share * f64::from(PRODUCTS_IN_CATEGORY))).unwrap_or(0);
    u16::try_from(category).unwrap_or(0) * PRODUCTS_IN_CATEGORY + place.min(PRODUCTS_IN_CATEGORY - 1)
}

#[derive(Debug)]
pub(crate) struct City {
    pub(crate) province: &'static str,
    pub(crate) name: &'static str,
    /// Where fixed numbers have eight digits; elsewhere they have seven, and nobody here has one.
    pub(crate) area_code: Option<&'static str>,
    pub(crate) districts: [&'static str; 3],
    pub(crate) weight: f64,
    /// Days that a parcel needs, and how much oftener than elsewhere it is late.
    pub(crate) transit_days: i64,
    pub(crate) lateness: f64,
}

const fn city(
    province: &'static str,
    name: &'static str,
    area_code: Option<&'static str>,
    districts: [&'static str; 3],
    weight: f64,
    transit_days: i64,
    lateness: f64,
) -> City {
    City { province, name, area_code, districts, weight, transit_days, lateness }
}

pub(crate) const CITIES: [City; 20] = [
    city("上海", "上海", Some("021"), ["浦东新区", "徐汇区", "静安区"], 12.0, 2, 0.8),
    city("北京", "北京", Some("010"), ["朝阳区", "海淀区", "丰台区"], 11.0, 2, 0.8),
    city("广东", "广州", Some("020"), ["天河区", "越秀区", "番禺区"], 9.0, 2, 0.8),
    city("广东", "深圳", Some("0755"), ["南山区", "福田区", "宝安区"], 10.0, 2, 0.8),
    city("浙江", "杭州", Some("0571"), ["西湖区", "余杭区", "滨江区"], 8.0, 2, 0.7),
    city("江苏", "南京", Some("025"), ["鼓楼区", "江宁区", "玄武区"], 6.0, 2, 0.9),
    city("江苏", "苏州", Some("0512"), ["姑苏区", "吴中区", "工业园区"], 5.0, 2, 0.8),
    city("四川", "成都", Some("028"), ["锦江区", "武侯区", "高新区"], 7.0, 3, 1.0),
    city("重庆", "重庆", Some("023"), ["渝中区", "江北区", "沙坪坝区"], 6.0, 3, 1.1),
    city("湖北", "武汉", Some("027"), ["武昌区", "江汉区", "洪山区"], 6.0, 3, 1.0),
    city("陕西", "西安", Some("029"), ["雁塔区", "碑林区", "未央区"], 4.0, 3, 1.1),
    city("湖南", "长沙", Some("0731"), ["岳麓区", "芙蓉区", "雨花区"], 4.0, 3, 1.0),
    city("山东", "青岛", Some("0532"), ["市南区", "崂山区", "黄岛区"], 3.0, 3, 1.0),
    city("山东", "济南", Some("0531"), ["历下区", "市中区", "槐荫区"], 3.0, 3, 1.0),
    city("福建", "厦门", None, ["思明区", "湖里区", "集美区"], 3.0, 3, 0.9),
    city("辽宁", "沈阳", Some("024"), ["和平区", "沈河区", "铁西区"], 3.0, 4, 1.3),
    city("黑龙江", "哈尔滨", Some("0451"), ["南岗区", "道里区", "香坊区"], 2.0, 4, 1.5),
    city("云南", "昆明", Some("0871"), ["五华区", "盘龙区", "官渡区"], 2.0, 4, 1.4),
    city("甘肃", "兰州", None, ["城关区", "七里河区", "安宁区"], 1.0, 5, 1.8),
    city("新疆", "乌鲁木齐", None, ["天山区", "沙依巴克区", "水磨沟区"], 1.0, 6, 2.2),
];

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) tills: i64,
    /// The shop's own number, where clerks type it in place of the customer's.
    pub(crate) clerks_phone: Option<u64>,
}

/// Clerks of every fifth store want to get past the field.
const STORES_A_CARELESS_ONE: u64 = 5;

/// Stores stand in the order of the cities, so many in each.
pub(crate) const STORES_IN_CITY: u16 = 3;

fn stores(dice: &mut Dice, seed: u64) -> Vec<Store> {
    let careless = mix(seed) % STORES_A_CARELESS_ONE;
    (0..CITIES.len() as u64 * u64::from(STORES_IN_CITY))
        .map(|store| Store {
            tills: dice.range(2, 6),
            clerks_phone: (store % STORES_A_CARELESS_ONE == careless).then(|| Ids::new(seed).phone(store, 2)),
        })
        .collect()
}

#[derive(Debug)]
pub(crate) struct Campaign {
    pub(crate) id: String,
    pub(crate) name: &'static str,
    pub(crate) at_ms: i64,
    /// How much likelier than usual people answer.
    pub(crate) appeal: f64,
    pub(crate) offer: Option<Offer>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) face_cents: i64,
    pub(crate) min_spend_cents: i64,
    pub(crate) valid_ms: i64,
}

fn campaigns(dice: &mut Dice, window: Window) -> Vec<Campaign> {
    const OFFERS: [(i64, i64, i64); 5] = [(10, 99, 14), (20, 199, 14), (30, 200, 10), (50, 399, 20), (15, 129, 7)];
    let mut campaigns = Vec::new();
    for day in 0..i64::from(window.days) {
        let local_day = (window.start_ms + LOCAL_OFFSET_MS).div_euclid(DAY_MS) + day;
        let (year, month, day_of_month) = calendar::civil(local_day);
        let lunar = calendar::LUNAR_NEW_YEAR
            .iter()
            .any(|new_year| calendar::days_of(new_year.0, new_year.1, new_year.2) - local_day == 14);
        let (name, appeal) = match (month, day_of_month) {
            _ if lunar => ("年货节, 全场满减", 1.3),
            (3, 6) => ("38 焕新周", 1.1),
            (6, 1) => ("618 预热", 1.1),
            (6, 16) => ("618 大促, 跨店满减", 1.5),
            (11, 1) => ("双11 开门红", 1.4),
            (11, 10) => ("双11 狂欢", 1.6),
            (12, 11) => ("双12 年终盛典", 1.2),
            (_, 8) => ("会员日", 1.0),
            (_, 21) => ("周末闪购", 0.8),
            _ => continue,
        };
        let offer = dice.chance(0.75).then(|| {
            let (face, min_spend, days) = *dice.pick(&OFFERS);
            Offer { face_cents: face * 100, min_spend_cents: min_spend * 100, valid_ms: days * DAY_MS }
        });
        let at_ms = local_day * DAY_MS - LOCAL_OFFSET_MS + 10 * HOUR_MS + dice.range(0, 8) * 15 * MINUTE_MS;
        // A window that does not begin at local midnight may cut its first and last days short.
        if (window.start_ms..window.end_ms - 3 * HOUR_MS).contains(&at_ms) {
            campaigns.push(Campaign {
                id: format!("C{year:04}{month:02}{day_of_month:02}"),
                name,
                at_ms,
                appeal,
                offer,
            });
        }
    }
    campaigns
}
